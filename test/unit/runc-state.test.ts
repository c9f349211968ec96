import assert from "node:assert/strict";
import { test } from "node:test";
import { initHasEnded } from "../../src/shim/runc-state.ts";
import { binary, dir, memory, type NodeSpec } from "../support/memory-files.ts";

const PID = 4711;
const START = 5305223;

/** As runc 1.1 writes it, as far as it matters, and longer than what is read of it. */
function state(pid: number): string {
  const config = { rootfs: "/bundle/rootfs", labels: ["long".repeat(500)] };
  const head = { id: "c1", init_process_pid: pid, init_process_start: START, created: "2024-02-02T10:00:00Z" };
  return JSON.stringify({ ...head, config, rootless: false });
}

/** The line of a process in /proc. */
function stat(state: string, start: number, name = "sh"): string {
  const between = Array.from({ length: 18 }, (_, i) => String(i)).join(" ");
  return `${PID} (${name}) ${state} ${between} ${start} 1000 2000\n`;
}

test("a container has ended when its first process is gone, by runc's own rule", () => {
  const cases: readonly (readonly [what: string, ended: boolean, proc: Record<string, string | NodeSpec>])[] = [
    ["no such process", true, {}],
    ["a zombie that nobody has waited for", true, { [`/proc/${PID}/stat`]: stat("Z", START) }],
    ["its number is another process's", true, { [`/proc/${PID}/stat`]: stat("S", START + 1) }],
    ["it runs", false, { [`/proc/${PID}/stat`]: stat("R", START) }],
    ["it sleeps", false, { [`/proc/${PID}/stat`]: stat("S", START) }],
    ["it hangs in the driver", false, { [`/proc/${PID}/stat`]: stat("D", START) }],
    ["it calls itself a zombie", false, { [`/proc/${PID}/stat`]: stat("S", START, "x) Z 1 (y") }],
    ["its name is no text", false, { [`/proc/${PID}/stat`]: binary(stat("S", START, "\xff")) }],
  ];
  for (const [what, ended, proc] of cases) {
    const sys = memory({ "/run/runc/c1/state.json": state(PID), ...proc });
    assert.equal(initHasEnded(sys, undefined, "c1"), ended, what);
  }
});

test("what cannot be told is no end", () => {
  const cases: readonly (readonly [what: string, text: string | NodeSpec])[] = [
    ["not started", state(0)],
    ["another runtime's file", '{"pid":4711}'],
    ["half a file", state(PID).slice(0, 40)],
    ["no text", binary("\xff")],
    ["a folder", dir()],
  ];
  for (const [what, text] of cases) {
    assert.equal(initHasEnded(memory({ "/run/runc/c1/state.json": text }), undefined, "c1"), false, what);
  }
  assert.equal(initHasEnded(memory(), undefined, "c1"), false, "no folder of it");
});

test("the folder is that of --root", () => {
  const sys = memory({ "/run/containerd/runc/k8s.io/c1/state.json": state(PID) });
  assert.equal(initHasEnded(sys, "/run/containerd/runc/k8s.io", "c1"), true);
  assert.equal(initHasEnded(sys, undefined, "c1"), false);
});
