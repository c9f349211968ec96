/** What is read of requests by hand, against what protobuf-es reads. */

import assert from "node:assert/strict";
import * as fs from "node:fs";
import * as path from "node:path";
import { test } from "node:test";
import { create, fromBinary, type MessageInitShape, toBinary } from "@bufbuild/protobuf";
import {
  type ContainerSchema,
  CreateContainerRequestSchema,
  type PodSandboxSchema,
  StateChangeEventSchema,
} from "../../src/nri/gen/nri_pb.js";
import { type Latin1, OWN_CALL, readSubject, STATE_CHANGE, type Subject } from "../../src/nri/subject.ts";
import { below, pick, type Rand } from "../support/fuzz.ts";
import { random } from "../support/random.ts";
import { ROOT } from "../support/simulated-host.ts";

/** How keys of annotations begin that are read. */
const READ = /^(?:gpu\.sluice\.dev|sluice\.dev\/plan|cdi\.k8s\.io\/)/;

function annotationsOf(annotations: Readonly<Record<string, string>>): [string, string][] {
  return Object.entries(annotations).filter(([key]) => READ.test(key));
}

/** As far as it is read. */
function seen({ pod, container }: Omit<Subject, "event">): unknown {
  return {
    pod: pod && { ...pick5(pod), annotations: annotationsOf(pod.annotations) },
    container: container && {
      id: container.id,
      name: container.name,
      annotations: annotationsOf(container.annotations),
      env: container.env,
      mounts: container.mounts.map(({ destination, type, source, options }) => ({
        destination,
        type,
        source,
        options,
      })),
      hooks: container.hooks,
      user: container.user,
      linux: container.linux && {
        namespaces: container.linux.namespaces.map(({ type }) => type),
        devices: container.linux.devices,
        resources: container.linux.resources && {
          devices: container.linux.resources.devices.map(({ allow, type, access, major, minor }) => ({
            allow,
            type,
            access,
            major: major?.value,
            minor: minor?.value,
          })),
        },
      },
    },
  };
}

function pick5({ id, name, uid, namespace }: NonNullable<Subject["pod"]>) {
  return { id, name, uid, namespace };
}

function whole(bytes: Uint8Array): unknown {
  return seen(fromBinary(CreateContainerRequestSchema, bytes));
}

const TEXTS = ["", "a", "/dev/nvidia0", "é😀", "x".repeat(32), "y".repeat(33), "ö".repeat(200), "__proto__", "\0"];

const KEYS = [
  ...TEXTS,
  "gpu.sluice.dev",
  "gpu.sluice.dev/container.train",
  `gpu.sluice.dev/container.${"z".repeat(200)}`,
  "cdi.k8s.io/ä",
  "sluice.dev/plan",
  "io.kubernetes.cri.sandbox-id",
];

function list<T>(rand: Rand, make: () => T): T[] {
  return Array.from({ length: below(rand, 4) }, make);
}

function maybe<T>(rand: Rand, make: () => T): T | undefined {
  return rand() < 0.5 ? make() : undefined;
}

function request(rand: Rand): Uint8Array {
  const text = () => pick(rand, TEXTS);
  const texts = () => list(rand, text);
  const map = () => Object.fromEntries(list(rand, () => [pick(rand, KEYS), text()]));
  const number = () => ({ value: below(rand, 1 << 30) });
  const long = () => BigInt(below(rand, 1 << 30)) - 5n;
  const hooks = () => list(rand, () => ({ path: text(), args: texts(), env: texts(), timeout: { value: long() } }));
  const pod: MessageInitShape<typeof PodSandboxSchema> = {
    id: text(),
    name: text(),
    uid: text(),
    namespace: text(),
    labels: map(),
    annotations: map(),
    linux: { cgroupsPath: text(), namespaces: [{ type: text() }] },
    pid: below(rand, 1 << 20),
    ips: texts(),
  };
  const container: MessageInitShape<typeof ContainerSchema> = {
    id: text(),
    podSandboxId: text(),
    name: text(),
    state: below(rand, 4),
    labels: map(),
    annotations: map(),
    args: texts(),
    env: texts(),
    mounts: list(rand, () => ({ destination: text(), type: text(), source: text(), options: texts() })),
    ...(rand() < 0.5 ? {} : { hooks: rand() < 0.5 ? {} : { prestart: hooks(), poststop: hooks() } }),
    ...(rand() < 0.2
      ? {}
      : {
          linux: {
            namespaces: list(rand, () => ({ type: text(), path: text() })),
            devices: list(rand, () => ({ path: text(), type: "c", major: long(), minor: long(), uid: number() })),
            oomScoreAdj: { value: long() },
            ...(rand() < 0.3
              ? {}
              : {
                  resources: {
                    memory: { limit: { value: long() } },
                    unified: map(),
                    devices: list(rand, () => ({
                      allow: rand() < 0.5,
                      type: text(),
                      access: text(),
                      ...(rand() < 0.5 ? {} : { major: { value: long() } }),
                      ...(rand() < 0.5 ? {} : { minor: { value: long() } }),
                    })),
                  },
                }),
          },
        }),
    pid: below(rand, 1 << 20),
    createdAt: long(),
    exitCode: -1,
    ...(rand() < 0.5 ? {} : { user: { uid: 1, gid: below(rand, 5), additionalGids: [1, 1 << 30] } }),
  };
  const parts = { ...(maybe(rand, () => 0) === 0 ? { pod } : {}), ...(rand() < 0.1 ? {} : { container }) };
  return toBinary(CreateContainerRequestSchema, create(CreateContainerRequestSchema, parts));
}

const latin1: Latin1 = (bytes) => (start, end) => Buffer.from(bytes).toString("latin1", start, end);

function large(): Uint8Array {
  const container = { env: ["x".repeat(20_000), "ö"], annotations: { "gpu.sluice.dev": "gpu" } };
  return toBinary(CreateContainerRequestSchema, create(CreateContainerRequestSchema, { container }));
}

test("of a request is read what protobuf-es reads, whatever stands in it and in however many parts it comes", () => {
  for (let seed = 0; seed < 300; seed++) {
    const rand = random(seed);
    const parts = [request(rand), request(rand)];
    // One that is larger than most, of which no pieces are kept.
    if (seed % 20 === 0) parts.push(large());
    for (const bytes of [...parts, new Uint8Array(Buffer.concat(parts))]) {
      assert.deepEqual(seen(readSubject(bytes, OWN_CALL)), whole(bytes), `seed ${seed}`);
      assert.deepEqual(seen(readSubject(bytes, OWN_CALL, latin1)), whole(bytes), `seed ${seed}`);
    }
  }
});

test("a change of state is read with its event", () => {
  for (let seed = 0; seed < 50; seed++) {
    const of = fromBinary(CreateContainerRequestSchema, request(random(seed)));
    const { pod, container } = of;
    const parts = { event: seed % 3, ...(pod && { pod }), ...(container && { container }) };
    const read = readSubject(toBinary(StateChangeEventSchema, create(StateChangeEventSchema, parts)), STATE_CHANGE);
    assert.equal(read.event, seed % 3);
    assert.deepEqual(seen(read), seen(of), `seed ${seed}`);
  }
});

test("of the request that containerd 2.1 has made is read what protobuf-es reads", () => {
  const bytes = new Uint8Array(fs.readFileSync(path.join(ROOT, "test/fixtures/nri/create-container-2.1.bin")));
  assert.deepEqual(seen(readSubject(bytes, OWN_CALL)), whole(bytes));
  for (let length = 0; length < bytes.length; length++) {
    const part = bytes.subarray(0, length);
    assert.deepEqual(
      outcome(part, (of) => seen(readSubject(of, OWN_CALL))),
      outcome(part, whole),
      `${length} bytes`,
    );
  }
});

/** What comes of bytes that are cut off: the same, or an error. */
function outcome(bytes: Uint8Array, read: (bytes: Uint8Array) => unknown): unknown {
  try {
    return read(bytes);
  } catch (thrown) {
    assert.ok(thrown instanceof Error);
    return "an error";
  }
}

test("annotations that mean nothing to us are not read", () => {
  const annotations = {
    "io.kubernetes.cri.container-name": "train",
    "gpu.sluice.dev/pod": "gpu",
    [`x${"y".repeat(200)}`]: "",
  };
  const bytes = toBinary(
    CreateContainerRequestSchema,
    create(CreateContainerRequestSchema, { pod: { annotations }, container: { annotations } }),
  );
  const { pod, container } = readSubject(bytes, OWN_CALL);
  assert.deepEqual(pod?.annotations, { "gpu.sluice.dev/pod": "gpu" });
  assert.deepEqual(container?.annotations, { "gpu.sluice.dev/pod": "gpu" });
});

test("what is no request is an error", () => {
  const bad: Record<string, number[]> = {
    "a field without a number": [0x02, 0x00],
    "a container that is longer than the request": [0x12, 0x05, 0x0a],
    "a label that is longer than the request": [0x12, 0x02, 0x2a, 0x7f],
    "a type that there is none of": [0x1f],
    "a name that is no text": [0x12, 0x03, 0x1a, 0x01, 0xff],
  };
  for (const [what, bytes] of Object.entries(bad)) {
    assert.throws(() => readSubject(new Uint8Array(bytes), OWN_CALL), Error, what);
    assert.throws(() => whole(new Uint8Array(bytes)), Error, what);
  }
});
