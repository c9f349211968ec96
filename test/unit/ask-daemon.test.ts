import assert from "node:assert/strict";
import { test } from "node:test";
import { askDaemon } from "../../src/plan/ask-daemon.ts";
import { openMachine } from "../../src/plan/machine.ts";
import { entitledDevices } from "../../src/policy/allocated.ts";
import type { Evidence } from "../../src/policy/allocation.ts";
import { printable } from "../../src/sys/error.ts";
import { damage, fuzz } from "../support/fuzz.ts";
import { type MemorySys, memory } from "../support/memory-files.ts";
import { POD, SANDBOX, SOCKET } from "../support/pods.ts";

const ALLOCATION = {
  devices: [
    { resource: "nvidia.com/gpu", ids: ["GPU-1"], answer: { visible: ["GPU-1"], cdiDevices: [], nodes: [] } },
    { resource: "x.com/gpu", ids: [] },
  ],
  claims: [{ namespace: "n", name: "c", driver: "d", pool: "p", device: "0", cdiDevices: ["x.com/gpu=0"] }],
};
const EVIDENCE = { from: "PodResources Get", allocation: ALLOCATION, notes: ["left out one"] };

function ask(answer: string | object, prepare: (sys: MemorySys) => void = () => {}): Evidence {
  const sys = memory({});
  sys.servers.set(SOCKET, () => (typeof answer === "string" ? answer : `${JSON.stringify(answer)}\n`));
  prepare(sys);
  return askDaemon(openMachine(sys), POD, SANDBOX, false);
}

function reason(answer: string | object, prepare?: (sys: MemorySys) => void): string {
  const evidence = ask(answer, prepare);
  assert.ok("unavailable" in evidence, JSON.stringify(evidence).slice(0, 200));
  return evidence.unavailable;
}

test("sluiced is asked in one line, with the pod and its sandbox where it is known", () => {
  const sys = memory({});
  const asked: string[] = [];
  sys.servers.set(SOCKET, (question) => {
    asked.push(question);
    return JSON.stringify({ v: 1, ...EVIDENCE });
  });
  askDaemon(openMachine(sys), POD, SANDBOX, false);
  askDaemon(openMachine(sys), { namespace: "n", pod: "p\n", container: "c" }, undefined, true);
  const uid = POD.uid;
  assert.deepEqual(asked, [
    `{"v":1,"ask":"evidence","namespace":"team","pod":"train-0","container":"main","uid":"${uid}","sandbox":"${SANDBOX}","again":false}\n`,
    '{"v":1,"ask":"evidence","namespace":"n","pod":"p\\n","container":"c","again":true}\n',
  ]);
});

test("what sluiced says is the evidence", () => {
  assert.deepEqual(ask({ v: 1, ...EVIDENCE }), EVIDENCE);
  const { notes: _, ...without } = EVIDENCE;
  assert.deepEqual(ask({ v: 1, ...without, more: "fields of a later version" }), without);
});

test("why sluiced has none is passed on, fit to be shown and of a bearable length", () => {
  assert.equal(reason({ v: 1, unavailable: "the kubelet\u001b[2J is away" }), "the kubelet\\u001b[2J is away");
  assert.equal(reason({ v: 1, error: "E_DAEMON_QUESTION: no" }), "E_DAEMON_QUESTION: no");
  assert.ok(reason({ v: 1, unavailable: "x".repeat(1 << 20) }).length < 2000);
});

test("a sluiced that is not there, or does not answer, is told by the call that failed", () => {
  assert.match(
    reason("", (sys) => sys.servers.clear()),
    /^sluiced cannot be asked \(connect \/run\/sluice\/.*: ENOENT\)$/,
  );
  for (const code of ["ECONNREFUSED", "ETIMEDOUT", "EPERM", "EFBIG", "EILSEQ"]) {
    assert.match(
      reason("", (sys) => sys.fail("ask", SOCKET, code)),
      new RegExp(`: ${code}\\)$`),
    );
  }
});

test("an answer that is none is no evidence, whatever it is", () => {
  for (const text of ["", "\n", "nonsense", "{", '{"v":1', "null", "1", '"text"', "[]", "[null]", "true", "{}"]) {
    assert.match(reason(text), /is not sluiced|no answer that this version understands/, text);
  }
  assert.match(reason("[".repeat(5_000_000)), /is not sluiced|no answer/);
});

test("an answer of another version, or with anything of another type, is no evidence", () => {
  const devices = (entry: unknown) => ({ ...ALLOCATION, devices: [entry] });
  const claims = (entry: unknown) => ({ ...ALLOCATION, claims: [entry] });
  const [device] = ALLOCATION.devices as [object];
  const [claim] = ALLOCATION.claims as [object];
  for (const answer of [
    EVIDENCE,
    { v: 2, ...EVIDENCE },
    { v: "1", ...EVIDENCE },
    { v: 1, from: "x" },
    { v: 1, allocation: ALLOCATION },
    { v: 1, ...EVIDENCE, from: 7 },
    { v: 1, ...EVIDENCE, notes: "x" },
    { v: 1, ...EVIDENCE, notes: [null] },
    ...[
      null,
      [],
      {},
      { devices: [] },
      { claims: [] },
      { devices: {}, claims: {} },
      ...[null, 1, "x", [], {}].flatMap((entry) => [devices(entry), claims(entry)]),
      devices({ ...device, resource: 1 }),
      devices({ ...device, ids: "GPU-1" }),
      devices({ ...device, ids: [1] }),
      devices({ ...device, answer: null }),
      devices({ ...device, answer: {} }),
      devices({ ...device, answer: { visible: [], cdiDevices: [{}], nodes: [] } }),
      claims({ ...claim, name: null }),
      claims({ ...claim, cdiDevices: [null] }),
    ].map((allocation) => ({ v: 1, ...EVIDENCE, allocation })),
  ]) {
    assert.match(reason(answer), /no answer that this version understands$/, JSON.stringify(answer));
  }
});

test("a damaged answer is evidence of the right types, or none", () => {
  const good = JSON.stringify({ v: 1, ...EVIDENCE });
  let none = 0;
  fuzz(90_000, 400, (rand, show) => {
    const text = damage(rand, good);
    show(text);
    const evidence = ask(text);
    if ("unavailable" in evidence) {
      none++;
      assert.equal(printable(evidence.unavailable), evidence.unavailable);
    } else {
      const { devices, notUnderstood } = entitledDevices(evidence.allocation);
      for (const { key } of devices) assert.equal(typeof key, "string");
      for (const text of notUnderstood) assert.equal(typeof text, "string");
    }
  });
  assert.ok(none > 200 && none < 400, `${none} are none`);
});

test("where nothing can ask, that is the reason", () => {
  const sys = memory({});
  const machine = { ...openMachine(sys), sys: { ...sys, ask: undefined } } as unknown as ReturnType<typeof openMachine>;
  assert.deepEqual(askDaemon(machine, POD, undefined, false), { unavailable: "this program cannot ask sluiced" });
});
