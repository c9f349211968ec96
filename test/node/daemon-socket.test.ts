/** The socket of sluiced: what it is asked, and what peers may do to it. */

import assert from "node:assert/strict";
import * as fs from "node:fs";
import * as net from "node:net";
import * as path from "node:path";
import { type TestContext, test } from "node:test";
import { type EvidenceQuestion, parseQuestion } from "../../src/daemon/question.ts";
import { type Answers, type ListeningSocket, listen } from "../../src/daemon/socket.ts";
import type { Evidence } from "../../src/policy/allocation.ts";
import { folder } from "../support/machine.ts";
import { random } from "../support/random.ts";

const QUESTION =
  '{"v":1,"ask":"evidence","namespace":"ml","pod":"train-0","container":"main","uid":"u-1","sandbox":"5a"}';
const EVIDENCE: Evidence = {
  from: "PodResources Get",
  allocation: { devices: [{ resource: "nvidia.com/gpu", ids: ["GPU-1"] }], claims: [] },
};
const STATUS = { version: "1", pid: 7, uptime: 3, lacks: [], nri: { state: "off" }, counts: {} } as const;

interface Served {
  readonly path: string;
  readonly socket: ListeningSocket;
  readonly asked: EvidenceQuestion[];
  readonly outcomes: string[];
}

async function serve(t: TestContext, evidence: Answers["evidence"] = () => Promise.resolve(EVIDENCE)): Promise<Served> {
  const file = path.join(folder(t), "sluiced.sock");
  const asked: Served["asked"] = [];
  const outcomes: string[] = [];
  const socket = await listen(file, {
    evidence: (question) => {
      asked.push(question);
      return evidence(question);
    },
    status: () => Promise.resolve(STATUS),
    asked: (ask, outcome) => outcomes.push(`${ask} ${outcome}`),
  });
  t.after(() => socket.close());
  return { path: file, socket, asked, outcomes };
}

/** What comes back until the connection ends. The pieces are written one by one, each in a turn of its own. */
async function exchange(file: string, pieces: readonly (string | Uint8Array)[], end = true): Promise<string> {
  const socket = net.connect(file);
  let answer = "";
  socket.setEncoding("utf8").on("data", (text: string) => {
    answer += text;
  });
  const over = new Promise<void>((resolve) => socket.on("close", () => resolve()).on("error", () => {}));
  for (const piece of pieces) {
    socket.write(piece);
    await new Promise((resolve) => setImmediate(resolve));
  }
  if (end) socket.end();
  await over;
  return answer;
}

async function ask(file: string, line: string): Promise<Record<string, unknown>> {
  const answer = await exchange(file, [`${line}\n`]);
  assert.match(answer, /^\{[^\n]*\}\n$/, "one line");
  return JSON.parse(answer) as Record<string, unknown>;
}

test("a question of a container is answered with its evidence", async (t) => {
  const { path: file, asked, outcomes } = await serve(t);
  assert.deepEqual(await ask(file, QUESTION), { v: 1, ...EVIDENCE });
  const container = { namespace: "ml", pod: "train-0", container: "main", uid: "u-1" };
  assert.deepEqual(asked, [{ ask: "evidence", container, sandbox: "5a", again: false }]);
  assert.deepEqual(outcomes, ["evidence answered"]);
});

test("a question can be asked again", async (t) => {
  const { path: file, asked } = await serve(t);
  await ask(file, QUESTION.replace("}", ',"again":true}'));
  assert.equal(asked[0]?.again, true);
});

test("what cannot be known is an answer too", async (t) => {
  const { path: file, outcomes } = await serve(t, () => Promise.resolve({ unavailable: "the kubelet hangs" }));
  assert.deepEqual(await ask(file, QUESTION), { v: 1, unavailable: "the kubelet hangs" });
  assert.deepEqual(outcomes, ["evidence unavailable"]);
});

test("the status is told", async (t) => {
  const { path: file } = await serve(t);
  assert.deepEqual(await ask(file, '{"v":1,"ask":"status"}'), { v: 1, ...STATUS });
});

test("a peer that keeps its half open is answered all the same, and the connection ends", async (t) => {
  const { path: file } = await serve(t);
  const socket = net.connect(file);
  socket.write(`${QUESTION}\n`);
  let answer = "";
  for await (const chunk of socket.setEncoding("utf8")) answer += chunk;
  assert.deepEqual(JSON.parse(answer), { v: 1, ...EVIDENCE });
});

test("a question is understood however it is cut", async (t) => {
  const { path: file } = await serve(t);
  const line = `${QUESTION.replace("train-0", "träin-0")}\n`;
  const bytes = new TextEncoder().encode(line);
  for (let cut = 1; cut < bytes.length; cut += 7) {
    assert.deepEqual(JSON.parse(await exchange(file, [bytes.subarray(0, cut), bytes.subarray(cut)])), {
      v: 1,
      ...EVIDENCE,
    });
  }
  assert.deepEqual(
    JSON.parse(
      await exchange(
        file,
        [...bytes].map((byte) => Uint8Array.of(byte)),
      ),
    ),
    {
      v: 1,
      ...EVIDENCE,
    },
  );
});

test("what follows a question is ignored", async (t) => {
  const { path: file, asked } = await serve(t);
  assert.deepEqual(await ask(file, `${QUESTION}\n${QUESTION}\n${"x".repeat(1 << 20)}`), { v: 1, ...EVIDENCE });
  assert.equal(asked.length, 1);
});

const WRONG: readonly (readonly [question: string, because: RegExp])[] = [
  ["", /"" is not JSON/],
  ["{", /"\{" is not JSON/],
  ["[]", /is no object/],
  ["null", /is no object/],
  ["{}", /v is missing, and this sluiced speaks 1/],
  ['{"v":2,"ask":"status"}', /v is 2, and this sluiced speaks 1/],
  ['{"v":"1","ask":"status"}', /v is "1"/],
  ['{"v":1}', /ask is missing/],
  ['{"v":1,"ask":"toString"}', /ask is "toString"/],
  ['{"v":1,"ask":["status"]}', /ask is \["status"\]/],
  ['{"v":1,"ask":"status","pod":"p"}', /"pod" belongs to no question of status/],
  [QUESTION.replace("{", '{"__proto__":{"x":1},'), /"__proto__" belongs to no question/],
  [QUESTION.replace('"ml"', "1"), /namespace is 1, not a text of 1 to 512/],
  [QUESTION.replace('"ml"', '""'), /namespace is ""/],
  [QUESTION.replace('"pod":"train-0",', ""), /pod is missing/],
  [QUESTION.replace('"main"', `"${"c".repeat(513)}"`), /container is "c+\.\.\." \(513 characters\)/],
  [QUESTION.replace('"u-1"', "null"), /uid is null/],
  [QUESTION.replace('"5a"', "{}"), /sandbox is \{\}/],
  [QUESTION.replace("}", ',"again":"yes"}'), /again is "yes", not true or false/],
];

test("a wrong question is told what is wrong with it, and asks nobody", async (t) => {
  const { path: file, asked, outcomes } = await serve(t);
  for (const [question, because] of WRONG) {
    const { v, error, ...rest } = await ask(file, question);
    assert.equal(v, 1);
    assert.match(String(error), /^E_DAEMON_QUESTION: /);
    assert.match(String(error), because, question);
    assert.deepEqual(rest, {});
  }
  assert.deepEqual(asked, []);
  assert.deepEqual(new Set(outcomes), new Set(["none E_DAEMON_QUESTION"]));
});

test("a question without an end, in no UTF-8, or too long is refused", async (t) => {
  const { path: file } = await serve(t);
  for (const [pieces, because] of [
    [[QUESTION], /no line break/],
    [[], /no line break/],
    [[Uint8Array.of(0x22, 0xff, 0x22, 0x0a)], /is not UTF-8/],
    [[`{"v":1,"ask":"${"x".repeat(64 << 10)}`], /more than 64 KiB/],
    [[`{"v":1,"ask":"${"x".repeat(64 << 10)}"}\n`], /more than 64 KiB/],
  ] as const) {
    const { error } = JSON.parse(await exchange(file, pieces)) as { error: string };
    assert.match(error, because);
  }
});

test("no damaged question does harm", async (t) => {
  const seed = 5;
  const next = random(seed);
  const { path: file } = await serve(t);
  for (let i = 0; i < 150; i++) {
    const bytes = new TextEncoder().encode(`${QUESTION}\n`);
    for (let damage = 0; damage < 1 + next() * 3; damage++) {
      bytes[Math.floor(next() * bytes.length)] = Math.floor(next() * 256);
    }
    const answer = await exchange(file, [bytes.subarray(0, Math.ceil(next() * bytes.length))]);
    assert.match(answer, /^\{"v":1,[^\n]*\}\n$/, `seed ${seed}, round ${i}`);
  }
  assert.deepEqual(await ask(file, QUESTION), { v: 1, ...EVIDENCE });
});

test("a peer that goes while its answer is made does no harm", async (t) => {
  let answered = (_: Evidence): void => {};
  const waiting = new Promise<Evidence>((resolve) => {
    answered = resolve;
  });
  const { path: file, asked } = await serve(t, () => waiting);
  const gone = net.connect(file);
  gone.write(`${QUESTION}\n`);
  while (asked.length === 0) await new Promise((resolve) => setImmediate(resolve));
  gone.destroy();
  const patient = ask(file, QUESTION);
  answered(EVIDENCE);
  assert.deepEqual(await patient, { v: 1, ...EVIDENCE });
});

test("many ask at once, and each gets its own answer", async (t) => {
  const { path: file } = await serve(t, ({ container }) => Promise.resolve({ unavailable: container.pod }));
  const pods = Array.from({ length: 200 }, (_, i) => `pod-${i}`);
  const answers = await Promise.all(pods.map((pod) => ask(file, QUESTION.replace("train-0", pod))));
  assert.deepEqual(
    answers.map((answer) => answer["unavailable"]),
    pods,
  );
});

test("the socket is for its owner alone, and goes at the end with those who wait", async (t) => {
  const { path: file, socket, asked } = await serve(t, () => new Promise(() => {}));
  assert.equal(fs.statSync(file).mode & 0o777, 0o600);
  const waiting = exchange(file, [`${QUESTION}\n`], false);
  while (asked.length === 0) await new Promise((resolve) => setImmediate(resolve));
  socket.close();
  assert.equal(await waiting, "");
  assert.equal(fs.existsSync(file), false);
});

test("what a killed daemon left is replaced, and what is no socket is not", async (t) => {
  const dir = folder(t);
  const file = path.join(dir, "sluiced.sock");
  const answers = { evidence: () => Promise.resolve(EVIDENCE), status: () => Promise.resolve(STATUS), asked: () => {} };
  const killed = net.createServer().listen(file);
  await new Promise((resolve) => killed.once("listening", resolve));
  fs.renameSync(file, `${file}.kept`); // closing removes what has the name
  killed.close();
  fs.renameSync(`${file}.kept`, file);
  const socket = await listen(file, answers);
  assert.deepEqual(await ask(file, QUESTION), { v: 1, ...EVIDENCE });
  socket.close();

  fs.writeFileSync(file, "somebody's");
  await assert.rejects(listen(file, answers), { code: "E_DAEMON_SOCKET", message: /is there, and is no socket/ });
  assert.equal(fs.readFileSync(file, "utf8"), "somebody's");
  await assert.rejects(listen(path.join(dir, "none/sluiced.sock"), answers), { code: "E_DAEMON_SOCKET" });
});

test("names are taken as they are, in any script", () => {
  const question = parseQuestion('{"v":1,"ask":"evidence","namespace":"ns","pod":"п","container":"c"}');
  const container = { namespace: "ns", pod: "п", container: "c" };
  assert.deepEqual(question, { ask: "evidence", container, again: false });
});
