/** The tests' own client of the Container Runtime Interface, as far as it can be held to its word without an engine. */

import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import * as path from "node:path";
import { type TestContext, test } from "node:test";
import { create, fromBinary, toBinary } from "@bufbuild/protobuf";
import * as grpc from "@grpc/grpc-js";
import { ContainerConfigSchema, VersionRequestSchema, VersionResponseSchema } from "../lab/cri/gen/cri_pb.js";
import { CriError, connect, parseLog } from "../lab/cri.ts";
import { folder } from "../support/machine.ts";
import { ROOT } from "../support/simulated-host.ts";

test("the generated messages are made from cri.proto as it is", () => {
  const r = spawnSync(path.join(ROOT, "test/lab/cri/generate.sh"), ["--check"], { encoding: "utf8" });
  assert.deepEqual([r.status, r.stderr], [0, ""]);
});

test("a message has the interface's field numbers on the wire", () => {
  const config = create(ContainerConfigSchema, {
    envs: [{ key: "K", value: "V" }],
    annotations: { a: "b" },
    CDIDevices: [{ name: "x.com/y=z" }],
  });
  const wire = Buffer.from(toBinary(ContainerConfigSchema, config)).toString("hex");
  // Tags of length-delimited fields 6, 10 and 17 (two bytes: 17 << 3 | 2 is 0x8a 0x01), each with its message.
  assert.equal(wire, "32060a014b120156" + "52060a0161120162" + "8a010b0a09782e636f6d2f793d7a");
});

/** A server that answers Version as told. */
async function serve(t: TestContext, answer: grpc.handleUnaryCall<Buffer, Buffer>): Promise<string> {
  const socket = path.join(folder(t), "cri.sock");
  const server = new grpc.Server();
  t.after(() => server.forceShutdown());
  const asIs = (bytes: Buffer) => bytes;
  server.addService(
    {
      version: {
        path: "/runtime.v1.RuntimeService/Version",
        requestStream: false,
        responseStream: false,
        requestSerialize: asIs,
        requestDeserialize: asIs,
        responseSerialize: asIs,
        responseDeserialize: asIs,
      },
    },
    { version: answer },
  );
  await new Promise<void>((resolve, reject) => {
    const credentials = grpc.ServerCredentials.createInsecure();
    server.bindAsync(`unix://${socket}`, credentials, (error) => (error === null ? resolve() : reject(error)));
  });
  return socket;
}

test("a call carries its fields there and back", async (t) => {
  const socket = await serve(t, (call, done) => {
    const { version } = fromBinary(VersionRequestSchema, call.request);
    const message = create(VersionResponseSchema, { version, runtimeName: "ours" });
    done(null, Buffer.from(toBinary(VersionResponseSchema, message)));
  });
  const cri = connect(t, socket);
  await cri.ready();
  const { version, runtimeName } = await cri.runtime.version({ version: "v1" });
  assert.deepEqual([version, runtimeName], ["v1", "ours"]);
});

test("an error has the code and the words of the runtime, and one of no runtime says so", async (t) => {
  const socket = await serve(t, (_, done) => done({ code: grpc.status.UNKNOWN, details: 'sluice: E_X: "a"; b' }));
  await assert.rejects(connect(t, socket).runtime.version(), (error: unknown) => {
    assert.ok(error instanceof CriError);
    assert.deepEqual([error.code, error.details], ["UNKNOWN", 'sluice: E_X: "a"; b']);
    return error.message === 'Version: UNKNOWN: sluice: E_X: "a"; b';
  });
  await assert.rejects(connect(t, socket).image.listImages(), { name: "CriError", code: "UNIMPLEMENTED" });
  await assert.rejects(connect(t, path.join(folder(t), "none.sock")).runtime.version(), { code: "UNAVAILABLE" });
});

test("a container's log is read with its streams, and lines that were split are whole again", () => {
  const log =
    "2016-10-06T00:17:09.669794202Z stdout P log \n" +
    "2016-10-06T00:17:09.669794203Z stderr F an error\n" +
    "2016-10-06T00:17:09.669794204Z stdout F content\n" +
    "2016-10-06T00:17:09.669794205Z stdout F \n";
  assert.deepEqual(
    parseLog(log).map(({ stream, text }) => [stream, text]),
    [
      ["stderr", "an error\n"],
      ["stdout", "log content\n"],
      ["stdout", "\n"],
    ],
  );
  assert.throws(() => parseLog("free text\n"), /not a line of a CRI log: "free text"/);
});
