/** The GPU kit (test/gpu/) as far as it can be proven without a GPU: on simulated machines that hold nothing else. */

import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import * as fs from "node:fs";
import * as path from "node:path";
import { before, type TestContext, test } from "node:test";
import { hasParts, makeKit } from "../gpu/kit.ts";
import { folder, needs, type Result, run } from "../support/machine.ts";
import { DRIVER, makeHost, ROOT } from "../support/simulated-host.ts";

const options = needsKit();
const KIT = path.join(ROOT, "build/gpu-kit");
const CUDA = path.join(KIT, "rootfs/usr/bin/cuda");

function needsKit(): { skip: string | false } {
  const found = needs("root", "build", "cc");
  if (found.skip !== false || hasParts()) return found;
  const reason = "needs the lab (run `make lab`)";
  if (process.env["CI"] === "true") throw new Error(`CI lacks what a test needs: ${reason}`);
  return { skip: reason };
}

before(() => {
  if (options.skip === false) makeKit(KIT);
});

/** Compiles the simulated driver library. */
function makeLibcuda(file: string, ...flags: string[]): void {
  const source = path.join(ROOT, "test/fixtures/gpu/libcuda.c");
  const strict = ["-std=c11", "-O2", "-Wall", "-Wextra", "-Werror", "-D_GNU_SOURCE", "-shared", "-fPIC"];
  execFileSync("gcc", [...strict, ...flags, "-Wl,-soname,libcuda.so.1", "-o", file, source]);
}

/** A machine's root with a shell and a few nodes. No libc, no network, nothing of this checkout. */
function makeMachine(t: TestContext): string {
  const root = folder(t);
  for (const dir of ["bin", "dev", "proc", "sys", "run", "tmp", "old", "kit", "out", "usr/bin"]) {
    fs.mkdirSync(path.join(root, dir), { recursive: true });
  }
  fs.copyFileSync(path.join(KIT, "bin/busybox"), path.join(root, "bin/busybox"));
  fs.symlinkSync("busybox", path.join(root, "bin/sh"));
  for (const node of ["null", "zero", "full", "random", "urandom", "tty"]) {
    execFileSync("cp", ["-a", `/dev/${node}`, path.join(root, "dev")]);
  }
  return root;
}

/** Two GPUs that are stand-ins, a driver without them, and an nvidia-smi that lists those that it can open. */
function addDriver(root: string, ...flags: string[]): void {
  const host = makeHost(path.join(root, "tmp/host"));
  for (const node of ["nvidiactl", "nvidia0", "nvidia1"]) {
    execFileSync("cp", ["-a", path.join(host.dir, "dev", node), path.join(root, "dev")]);
  }
  const lib = path.join(root, "usr/local/nvidia/lib64");
  fs.mkdirSync(lib, { recursive: true });
  makeLibcuda(path.join(lib, `libcuda.so.${DRIVER}`), ...flags);
  fs.writeFileSync(path.join(lib, `libnvidia-ml.so.${DRIVER}`), "");
  for (const name of ["libcuda", "libnvidia-ml"])
    fs.symlinkSync(`${name}.so.${DRIVER}`, path.join(lib, `${name}.so.1`));
  const list =
    'for n in 0 1; do (exec 3<"/dev/nvidia$n") 2>/dev/null && echo "GPU $n: Simulated (UUID: GPU-$n-$n)"; done';
  fs.writeFileSync(path.join(root, "usr/bin/nvidia-smi"), `#!/bin/sh\n${list}; true\n`, { mode: 0o755 });
}

/**
 * Runs the kit with that root as `/`, in namespaces of its own. `pivot_root`, since runc does the same within: after a
 * mere chroot, a second process that enters its container would find itself outside of both.
 */
function runKit(root: string, cgroups: "this machine's" | "none mounted" = "this machine's"): Result {
  const sys = cgroups === "none mounted" ? "mount -t sysfs none" : "mount --rbind /sys";
  const enter = `mount --bind "$0" "$0" && mount --bind "${KIT}" "$0/kit" && mount -t proc none "$0/proc" &&
    ${sys} "$0/sys" && cd "$0" && pivot_root . old && exec /bin/busybox sh -c "$1"`;
  const inside = "umount -l /old && exec env -i PATH=/usr/bin:/bin /kit/run --output /out";
  const namespaces = ["--mount", "--propagation", "private", "--net", "--pid", "--fork", "--kill-child"];
  return run("unshare", [...namespaces, "sh", "-c", enter, root, inside]);
}

function report(root: string) {
  return JSON.parse(fs.readFileSync(path.join(root, "out/report.json"), "utf8"));
}

test("on a machine without an NVIDIA GPU the kit says so, with an exit status of its own", options, (t) => {
  const root = makeMachine(t);
  const r = runKit(root);
  assert.deepEqual([r.code, r.out], [3, ""]);
  assert.match(r.err, /^gpu-kit: there is no NVIDIA GPU here: /);
  assert.deepEqual(fs.readdirSync(path.join(root, "run")), []);
});

for (const cgroups of ["this machine's", "none mounted"] as const) {
  test(
    `the kit brings all that it needs: with a driver and nothing else all checks hold (cgroups: ${cgroups})`,
    options,
    (t) => {
      const root = makeMachine(t);
      addDriver(root);
      const r = runKit(root, cgroups);
      assert.deepEqual([r.code, r.err], [0, ""], r.out);
      const { failed, checks, cuda, driver, cgroups: seen, nvidia_smi, start_us } = report(root);
      assert.equal(failed, 0);
      assert.deepEqual(
        checks.filter((check: { ok: boolean }) => !check.ok),
        [],
      );
      // Every check by its name: one that silently went missing would not fail.
      assert.deepEqual(
        checks.map((check: { check: string }) => check.check),
        [
          "the CDI spec of this machine is valid",
          "without a request, config.json stays as it was",
          "without a request, there is no node of a GPU",
          "without a request, GPU 0's node cannot be opened, made by hand",
          "without a request, GPU 1's node cannot be opened, made by hand",
          "without a request, there is no CUDA",
          "with a request, the container runs",
          "with a request, GPU 0's node opens",
          "with a request, nvidia-smi sees one GPU, one of the machine's",
          "with a request, CUDA copies to the GPU and back",
          "with a request for GPU 0, GPU 1's node cannot be opened, made by hand",
          "with the driver alone (NVIDIA_VISIBLE_DEVICES=none), libcuda.so.1 is there and finds no GPU",
          "with the driver alone, GPU 0's node cannot be opened, made by hand",
          "with the driver alone, GPU 1's node cannot be opened, made by hand",
          "annotation cdi.k8s.io/gpu=nvidia.com/gpu=0 gives the GPU",
          "variable NVIDIA_VISIBLE_DEVICES=0 gives the GPU",
          "variable NVIDIA_VISIBLE_DEVICES=all gives the GPU",
          "a GPU that is not there keeps the container from starting",
          "a container that runs has a receipt",
          "a command that is run in it later has the GPU too",
          "the receipt goes with the container",
        ],
      );
      // Where there are none, it mounts those of version 2.
      if (cgroups === "none mounted") assert.equal(seen, "cgroup2 /sys/fs/cgroup");
      assert.equal(driver, DRIVER);
      assert.deepEqual(nvidia_smi, {
        machine: "GPU 0: Simulated (UUID: GPU-0-0)\nGPU 1: Simulated (UUID: GPU-1-1)",
        container: "GPU 0: Simulated (UUID: GPU-0-0)",
      });
      assert.deepEqual([cuda.machine.count, cuda.container.count], [2, 1]);
      assert.equal(cuda.container.devices[0].name, 'Simulated "GPU" 0');
      for (const took of Object.values<{ shortest: number; middle: number }>(start_us)) assert.ok(took.shortest > 0);
      assert.deepEqual(fs.readdirSync(path.join(root, "out")).sort(), [
        "config.json",
        "plan.json",
        "report.json",
        "report.txt",
        "spec.json",
      ]);
      assert.deepEqual(fs.readdirSync(path.join(root, "run")), []);
    },
  );
}

test("a GPU that changes what it is given fails the kit, in the checks that CUDA is in", options, (t) => {
  const root = makeMachine(t);
  addDriver(root, "-DFORGETFUL");
  const r = runKit(root);
  assert.equal(r.code, 1, r.out + r.err);
  const { failed, checks, cuda } = report(root);
  assert.deepEqual(cuda.container, { error: "device 0: the bytes came back changed" });
  const wrong = checks.filter((check: { ok: boolean }) => !check.ok).map((check: { check: string }) => check.check);
  assert.equal(failed, wrong.length);
  assert.ok(wrong.includes("with a request, CUDA copies to the GPU and back"));
  assert.ok(!wrong.some((check: string) => /opened|opens|config\.json/.test(check)));
});

test("the CUDA program tells no library, no GPU and a GPU apart", options, (t) => {
  const dir = folder(t);
  const none = run(CUDA, [], { env: { LD_LIBRARY_PATH: "" } });
  assert.equal(none.code, 10);
  assert.match(none.out, /"error":"libcuda\.so\.1: cannot open/);
  makeLibcuda(path.join(dir, "libcuda.so.1"));
  if (!fs.existsSync("/dev/nvidiactl")) {
    const empty = run(CUDA, [], { env: { LD_LIBRARY_PATH: dir } });
    assert.equal(empty.code, 11);
    assert.deepEqual(JSON.parse(empty.out), { error: "cuInit: CUDA_ERROR_NO_DEVICE (100)" });
  }
});
