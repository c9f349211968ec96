import assert from "node:assert/strict";
import * as fs from "node:fs";
import * as path from "node:path";
import { type TestContext, test } from "node:test";
import { USER } from "../lab/build.ts";
import { type Podman, type PodmanOptions, startPodman } from "../lab/engines.ts";
import { HAS_GPU_0, HAS_GPU_0_NO_MKNOD, HAS_NONE, showGpus } from "../lab/gpu.ts";
import { reference } from "../lab/images.ts";
import { needsLab, waitFor } from "../lab/machine.ts";
import { assertPlanned } from "../lab/planned.ts";
import { record } from "../lab/results.ts";
import { ALONE, creation, creations, creationsAlone, receipts } from "../lab/witness.ts";
import { DRIVER } from "../support/simulated-host.ts";

const options = needsLab();

const IMAGE = reference("busybox");
const ASK = "--annotation=gpu.sluice.dev=nvidia.com/gpu=0";
const WAIT = ["sh", "-c", "trap 'exit 0' TERM; while :; do sleep 0.1; done"];

/** A container that waits; returns its full id, which is also the OCI runtime's. */
function start(podman: Podman, ...args: string[]): string {
  return podman.must("--runtime=sluice", "run", "--detach", ...args, IMAGE, ...WAIT).trim();
}

function exec(podman: Podman, id: string): string {
  return podman.must("--runtime=sluice", "exec", id, "sh", "-c", showGpus(podman.machine));
}

for (const rootless of [false, true]) {
  const who = rootless ? "rootless" : "as root";
  const engine = (t: TestContext, more: Partial<PodmanOptions> = {}): Podman =>
    startPodman(t, { rootless, witness: true, ...more });
  const version = (podman: Podman): string => `${podman.version} ${who}`;

  /** As the place of its own receipts: root's, or the user's. */
  const receiptsOf = (podman: Podman): string[] =>
    receipts(podman, rootless ? `run/user/${USER.uid}/sluice` : "run/sluice");

  /** A part of a test, which leaves no container to the next. */
  const check = async (t: TestContext, podman: Podman, name: string, act: () => void): Promise<void> => {
    await t.test(name, () => {
      try {
        act();
      } finally {
        podman.must("--runtime=sluice", "rm", "--all", "--force", "--time=0");
      }
    });
  };

  test(`Podman, ${who}: what a container asks for is what it gets`, options, async (t) => {
    const podman = engine(t);
    const { machine } = podman;

    await check(t, podman, "a container that asks for nothing is byte for byte what Podman alone makes", () => {
      const id = start(podman, "--cap-add=MKNOD");
      const { before, after } = creation(podman, id);
      assert.equal(after, before);
      assert.deepEqual(receiptsOf(podman), []);
      const alone = podman.must(`--runtime=${ALONE}`, "run", "--detach", "--cap-add=MKNOD", IMAGE, ...WAIT).trim();
      const [config = ""] = creationsAlone(machine, alone);
      assert.deepEqual(
        withoutIds(podman, id, before),
        withoutIds(podman, alone, config),
        "and Podman makes the same for us",
      );
      record("Podman", version(podman), "nothing asked, `--runtime sluice`", "unchanged");
    });

    const ways: Record<string, string[]> = {
      "`--annotation gpu.sluice.dev=nvidia.com/gpu=0`": [ASK],
      "`--annotation cdi.k8s.io/x=nvidia.com/gpu=0`": ["--annotation=cdi.k8s.io/x=nvidia.com/gpu=0"],
      "`-e NVIDIA_VISIBLE_DEVICES=0`": ["--env=NVIDIA_VISIBLE_DEVICES=0"],
    };
    for (const [way, args] of Object.entries(ways)) {
      await check(t, podman, `asked with ${way}, it gets the planned edits and no others`, () => {
        const id = start(podman, ...args);
        const plan = assertPlanned(machine, creation(podman, id));
        assert.deepEqual(
          plan.devices.map((device) => device.name),
          ["nvidia.com/gpu=0"],
        );
        assert.equal(exec(podman, id), HAS_GPU_0_NO_MKNOD);
        assert.equal(podman.must("exec", id, "nvidia-smi"), `GPU 0: simulated, driver ${DRIVER}\n`);
        assert.deepEqual(receiptsOf(podman), [`${id}.json`]);
        podman.must("--runtime=sluice", "rm", "--force", "--time=0", id);
        assert.deepEqual(receiptsOf(podman), []);
        record("Podman", version(podman), way, "given");
      });
    }

    await check(t, podman, "what Podman's own CDI has given is left as it is, also where it is asked for twice", () => {
      const id = start(podman, "--device=nvidia.com/gpu=0");
      const native = creation(podman, id);
      assert.equal(native.after, native.before);
      assert.equal(exec(podman, id), HAS_GPU_0_NO_MKNOD);
      const twice = start(podman, "--device=nvidia.com/gpu=0", ASK);
      const { before, after } = creation(podman, twice);
      const [was, is] = [JSON.parse(before), JSON.parse(after ?? "")];
      assert.match(is.annotations["sluice.dev/plan"], /^[0-9a-f]{64}$/);
      delete is.annotations["sluice.dev/plan"];
      for (const config of [was, is]) config.mounts.sort(byDestination);
      assert.deepEqual(is, was, "but for the stamp and the order of the mounts");
      assert.equal(exec(podman, twice), HAS_GPU_0_NO_MKNOD);
      record(
        "Podman",
        version(podman),
        "`--device nvidia.com/gpu=0` (Podman's own CDI)",
        "given by Podman, unchanged by Sluice",
      );
      record("Podman", version(podman), "`--device` and the annotation at once", "given once");
    });

    await check(t, podman, "a device that is not there keeps the container from starting, and Podman says why", () => {
      const r = podman.run("--runtime=sluice", "run", "--annotation=gpu.sluice.dev=nvidia.com/gpu=7", IMAGE, "true");
      assert.notEqual(r.code, 0);
      assert.match(r.err, /E_CDI_UNKNOWN_DEVICE.*nvidia\.com\/gpu=7/);
      assert.deepEqual(receiptsOf(podman), []);
      record("Podman", version(podman), "a device that does not exist", "refused");
    });

    await check(t, podman, "a privileged container, a read-only one and one of another user", () => {
      const privileged = start(podman, "--privileged", ASK);
      assertPlanned(machine, creation(podman, privileged));
      assert.match(exec(podman, privileged), /^nvidia0 opens\nnvidiactl opens\n/);
      const readOnly = start(podman, "--read-only", ASK);
      assertPlanned(machine, creation(podman, readOnly));
      assert.match(exec(podman, readOnly), /^nvidia0 opens\nnvidiactl opens\nnvidia1 absent\n/);
      const bare = start(podman, "--cap-drop=ALL", "--user=1000:1000", ASK);
      assertPlanned(machine, creation(podman, bare));
      assert.match(exec(podman, bare), /^nvidia0 opens\nnvidiactl opens\nnvidia1 absent\n/);
      const unasked = start(podman, "--privileged");
      const { before, after } = creation(podman, unasked);
      assert.equal(after, before);
      record(
        "Podman",
        version(podman),
        "`--privileged` with the annotation",
        "given; what `--privileged` opens stays open",
      );
      record("Podman", version(podman), "`--read-only` with the annotation", "given");
      record("Podman", version(podman), "`--user` and `--cap-drop ALL` with the annotation", "given");
    });

    await check(t, podman, "containers that share namespaces, as those of a Podman pod do", () => {
      const other = start(podman, "--ipc=shareable");
      const shared = [`--pid=container:${other}`, `--ipc=container:${other}`, `--network=container:${other}`];
      const id = start(podman, ...shared, ASK);
      assertPlanned(machine, creation(podman, id));
      assert.equal(exec(podman, id), HAS_GPU_0_NO_MKNOD);
      assert.match(exec(podman, other), /^nvidia0 absent\nnvidiactl absent\nnvidia1 absent\n/);
      record("Podman", version(podman), "namespaces of another container, with the annotation", "given");
    });

    await check(t, podman, "a container of a Podman pod has what it names: no kubelet allocates to it", () => {
      const infra = ["--infra-image", IMAGE, "--infra-command", "sleep 1000", "--name=together"];
      podman.must("--runtime=sluice", "pod", "create", ...infra);
      // As other versions of Podman, and `podman kube play`, write it for Kata.
      const type = "io.kubernetes.cri-o.ContainerType";
      const id = start(podman, "--pod=together", `--annotation=${type}=container`, ASK);
      const { annotations } = JSON.parse(creation(podman, id).before);
      assert.deepEqual([annotations[type], annotations["io.container.manager"]], ["container", "libpod"]);
      assertPlanned(machine, creation(podman, id));
      assert.equal(exec(podman, id), HAS_GPU_0_NO_MKNOD);
      podman.must("--runtime=sluice", "pod", "rm", "--force", "--time=0", "together");
      record("Podman", version(podman), "`--pod` with the annotation", "given");
    });

    await check(t, podman, "its GPU outlives exec, pause, cp, restart, stop and start", () => {
      const id = start(podman, ASK);
      if (!rootless) {
        podman.must("--runtime=sluice", "update", "--memory=64m", "--cpu-shares=512", id);
        assert.equal(exec(podman, id), HAS_GPU_0_NO_MKNOD, "after update");
        podman.must("--runtime=sluice", "pause", id);
        podman.must("--runtime=sluice", "unpause", id);
        assert.equal(exec(podman, id), HAS_GPU_0_NO_MKNOD, "after pause");
        for (const way of ["update", "pause"]) record("Podman", version(podman), `\`podman ${way}\``, "kept");
      }
      machine.write("/tmp/carried", "carried");
      podman.must("cp", "/tmp/carried", `${id}:/root/carried`);
      assert.equal(podman.must("exec", id, "cat", "/root/carried"), "carried");
      podman.must("--runtime=sluice", "restart", "--time=1", id);
      assert.equal(exec(podman, id), HAS_GPU_0_NO_MKNOD, "after restart");
      podman.must("--runtime=sluice", "stop", "--time=1", id);
      assert.deepEqual(receiptsOf(podman), [], "a stopped container holds nothing");
      podman.must("--runtime=sluice", "start", id);
      assert.equal(exec(podman, id), HAS_GPU_0_NO_MKNOD, "after stop and start");
      const all = creations(machine, id);
      assert.equal(all.length, 3);
      for (const each of all) assertPlanned(machine, each);
      podman.must("--runtime=sluice", "rm", "--force", "--time=0", id);
      assert.deepEqual(receiptsOf(podman), []);
      for (const way of ["exec", "cp", "restart", "stop, start"])
        record("Podman", version(podman), `\`podman ${way}\``, "kept");
      record("Podman", version(podman), "`podman rm --force`", "released");
    });

    await check(t, podman, "a container that Podman restarts by itself has its GPU again", () => {
      const id = start(podman, "--restart=always", ASK);
      machine.must("kill", "-9", podman.must("inspect", "--format", "{{.State.Pid}}", id).trim());
      const restarted = (): boolean =>
        podman.must("inspect", "--format", "{{.State.Running}} {{.RestartCount}}", id).trim() === "true 1";
      waitFor(restarted, "the restarted container", () => podman.run("inspect", id).out);
      assert.equal(exec(podman, id), HAS_GPU_0_NO_MKNOD);
      const all = creations(machine, id);
      assert.equal(all.length, 2);
      for (const each of all) assertPlanned(machine, each);
      podman.must("--runtime=sluice", "rm", "--force", "--time=0", id);
      assert.deepEqual(receiptsOf(podman), []);
      record("Podman", version(podman), "`--restart always`, killed", "kept");
    });

    await check(t, podman, "a container in the foreground is released at its end, with its exit code", () => {
      const r = podman.run("--runtime=sluice", "run", "--rm", ASK, IMAGE, "sh", "-c", `${showGpus(machine)}; exit 42`);
      assert.deepEqual([r.code, r.out, r.err], [42, HAS_GPU_0_NO_MKNOD, ""]);
      waitFor(
        () => receiptsOf(podman).length === 0,
        "the release",
        () => "",
      );
    });

    await check(t, podman, "50 containers created at once each have what they asked for", () => {
      const command = podman.client.map((word) => `'${word}'`).join(" ");
      const script = `for i in $(seq 50); do
          ${command} --runtime=sluice run -d --name=many-$i --annotation=gpu.sluice.dev=nvidia.com/gpu=$((i % 2)) \\
            ${IMAGE} sleep 1000 >/tmp/many-$i 2>&1 &
        done
        wait`;
      machine.must("sh", "-c", script);
      const said = machine.must("sh", "-c", "cat /tmp/many-*").trim().split("\n");
      assert.ok(
        said.every((line) => /^[0-9a-f]{64}$/.test(line)),
        said.join("\n"),
      );
      assert.equal(receiptsOf(podman).length, 50);
      for (let i = 1; i <= 50; i++) {
        const id = machine.must("cat", `/tmp/many-${i}`).trim();
        const config = JSON.parse(creation(podman, id).after ?? "");
        const nodes = config.linux.devices.map((device: { path: string }) => device.path);
        assert.ok(nodes.includes(`/dev/nvidia${i % 2}`) && !nodes.includes(`/dev/nvidia${1 - (i % 2)}`), nodes.join());
      }
      podman.must("--runtime=sluice", "rm", "--all", "--force", "--time=0");
      assert.deepEqual(receiptsOf(podman), []);
      record("Podman", version(podman), "50 containers at once", "given");
    });
  });

  test(`Podman, ${who}: as the default runtime`, options, (t) => {
    const podman = engine(t, { defaultRuntime: "sluice" });
    const plain = podman.must("run", "--detach", IMAGE, ...WAIT).trim();
    const { before, after } = creation(podman, plain);
    assert.equal(after, before);
    const id = podman.must("run", "--detach", ASK, IMAGE, ...WAIT).trim();
    assertPlanned(podman.machine, creation(podman, id));
    assert.equal(exec(podman, id), HAS_GPU_0_NO_MKNOD);
    podman.must("rm", "--all", "--force", "--time=0");
    assert.deepEqual(receiptsOf(podman), []);
    record("Podman", version(podman), "nothing asked, default runtime", "unchanged");
    record("Podman", version(podman), "the annotation, default runtime", "given");
  });

  for (const [lowLevel, cgroups] of [
    ["crun", "v1"],
    ["crun", "v2"],
    ["runc", "v2"],
  ] as const) {
    test(`Podman, ${who}: with ${lowLevel} beneath on cgroup ${cgroups}`, options, (t) => {
      const podman = engine(t, { lowLevel, cgroups });
      // v2 has not the controller pids on a machine with both.
      const more = rootless ? [] : ["--cap-add=MKNOD", "--pids-limit=0"];
      const plain = start(podman, ...more);
      const { before, after } = creation(podman, plain);
      assert.equal(after, before);
      assert.match(exec(podman, plain), /^nvidia0 absent\nnvidiactl absent\nnvidia1 absent\n/);
      const id = start(podman, ...more, ASK);
      assertPlanned(podman.machine, creation(podman, id));
      assert.equal(exec(podman, id), rootless ? HAS_GPU_0_NO_MKNOD : HAS_GPU_0);
      podman.must("--runtime=sluice", "rm", "--all", "--force", "--time=0");
      assert.deepEqual(receiptsOf(podman), []);
      record("Podman", version(podman), `nothing asked, ${lowLevel} on cgroup ${cgroups}`, "unchanged");
      record("Podman", version(podman), `the annotation, ${lowLevel} on cgroup ${cgroups}`, "given");
    });
  }

  test(`Podman, ${who}: killed with conmon in the middle of a create`, options, (t) => {
    const podman = engine(t);
    const { machine } = podman;
    const stuck = `#!/bin/sh\ncase " $* " in *' create '*) touch /tmp/in-create; sleep 1000 ;; esac\nexec runc "$@"\n`;
    machine.write("/usr/local/bin/stuck", stuck, 0o755);
    const settings = fs.readFileSync(path.join(machine.dir, "etc/sluice/config.toml"), "utf8");
    machine.write("/etc/sluice/config.toml", '[runtime]\nruntimes = ["/usr/local/bin/stuck"]\n');
    const [program = "", ...before] = podman.client;
    const client = machine.spawn(program, ...before, "--runtime=sluice", "run", "--name=victim", ASK, IMAGE, "true");
    waitFor(() => machine.run("test", "-e", "/tmp/in-create").code === 0, "the create", client.log);
    assert.equal(receiptsOf(podman).length, 1);
    // Not by name: rootless, another process called podman holds the user's namespaces.
    const ofVictim =
      "ps -o pid,args | awk '/[n]ame=victim|[c]onmon|[i]n-create|[l]ocal.bin.stuck|[s]leep 1000/ { print $1 }'";
    machine.must("sh", "-c", `kill -9 $(${ofVictim})`);
    waitFor(() => machine.must("sh", "-c", ofVictim) === "", "its end", client.log);
    machine.write("/etc/sluice/config.toml", settings);
    podman.must("--runtime=sluice", "start", "victim");
    podman.must("--runtime=sluice", "rm", "--force", "--time=0", "victim");
    assert.deepEqual(receiptsOf(podman), [], "nothing is held for a container that never was");
    const next = start(podman, ASK);
    assert.equal(exec(podman, next), HAS_GPU_0_NO_MKNOD);
    record("Podman", version(podman), "Podman killed in the middle of a create", "released");
  });
}

/** The rule of the kernel holds for a node that the container makes itself, where it may make one at all. */
test("Podman, as root: a node that the container makes itself does not open", options, (t) => {
  const podman = startPodman(t, { witness: true });
  const plain = start(podman, "--cap-add=MKNOD");
  assert.equal(exec(podman, plain), HAS_NONE);
  const id = start(podman, "--cap-add=MKNOD", ASK);
  assert.equal(exec(podman, id), HAS_GPU_0);
  record("Podman", `${podman.version} as root`, "`--cap-add MKNOD`, a node made inside", "given");
});

test("Podman, as root: a container in a user namespace", options, (t) => {
  const podman = startPodman(t, { witness: true });
  const maps = ["--uidmap=0:100000:65536", "--gidmap=0:100000:65536"];
  const plain = start(podman, ...maps);
  const { before, after } = creation(podman, plain);
  assert.equal(after, before);
  assert.match(before, /"uidMappings"/);
  const id = start(podman, ...maps, ASK);
  assertPlanned(podman.machine, creation(podman, id));
  assert.equal(exec(podman, id), HAS_GPU_0_NO_MKNOD);
  podman.must("--runtime=sluice", "rm", "--all", "--force", "--time=0");
  record("Podman", `${podman.version} as root`, "a user namespace, with the annotation", "given");
});

function byDestination(a: { destination: string }, b: { destination: string }): number {
  return a.destination < b.destination ? -1 : 1;
}

/**
 * config.json without what differs between any two containers: ids, the folders that are named after them, and the order
 * of its mounts and its environment, which Podman leaves to chance.
 */
function withoutIds(podman: Podman, id: string, config: string): Record<string, unknown> {
  const layers = podman.must("inspect", "--format", "{{.GraphDriver.Data.MergedDir}}", id).trim();
  const text = config
    .replaceAll(id, "ID")
    .replaceAll(id.slice(0, 12), "SHORT")
    .replaceAll(path.basename(path.dirname(layers)), "LAYER");
  const parsed = JSON.parse(text);
  parsed.mounts.sort(byDestination);
  parsed.process.env.sort();
  return parsed;
}
