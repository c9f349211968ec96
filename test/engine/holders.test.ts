/** Who holds a GPU, of containers of real engines. */

import assert from "node:assert/strict";
import * as fs from "node:fs";
import * as path from "node:path";
import { test } from "node:test";
import { readHolders } from "../../src/host/holders.ts";
import type { Node } from "../../src/host/node.ts";
import { sys } from "../../src/sys/node.ts";
import { startDocker, startPodman } from "../lab/engines.ts";
import { reference } from "../lab/images.ts";
import { type Machine, needsLab, waitFor } from "../lab/machine.ts";

const ASK = "--annotation=gpu.sluice.dev=nvidia.com/gpu=0";
/** Has the GPU's node open as long as it runs. */
const HOLD = ["sh", "-c", "exec 3<>/dev/nvidia0; trap 'exit 0' TERM; while :; do sleep 0.1; done"];

function node(machine: Machine, name: string): Node {
  const { rdev } = fs.statSync(path.join(machine.host.dir, `dev/${name}`));
  return { path: `/dev/${name}`, major: rdev >> 8, minor: rdev & 0xff };
}

/** Waits for a process of the container that has the first node open; it must have no other. */
function assertHeld(machine: Machine, id: string): void {
  const nodes = [node(machine, "nvidia0"), node(machine, "nvidia1")];
  const held = () => readHolders(sys, nodes).processes.filter(({ container }) => container === id);
  waitFor(
    () => held().length > 0,
    "a process of the container that holds the node",
    () => JSON.stringify(readHolders(sys, nodes)),
  );
  for (const { name, nodes: open } of held()) {
    assert.match(name, /^(?:sh|sleep|busybox)$/);
    assert.deepEqual(open, ["/dev/nvidia0"]);
  }
}

test("who holds a GPU is told by node and container of Docker", needsLab(), (t) => {
  const docker = startDocker(t, { version: "28" });
  const args = ["--detach", "--runtime=sluice", "--network=none", ASK, reference("busybox")];
  assertHeld(docker.machine, docker.must("run", ...args, ...HOLD).trim());
});

test("who holds a GPU is told by node and container of Podman", needsLab(), (t) => {
  const podman = startPodman(t);
  const args = ["--detach", ASK, reference("busybox")];
  assertHeld(podman.machine, podman.must("--runtime=sluice", "run", ...args, ...HOLD).trim());
});
