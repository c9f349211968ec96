import assert from "node:assert/strict";
import * as path from "node:path";
import { type TestContext, test } from "node:test";
import { type Daemon, type DockerOptions, startDocker } from "../lab/engines.ts";
import { HAS_GPU_0, HAS_NONE, showGpus } from "../lab/gpu.ts";
import { reference } from "../lab/images.ts";
import { needsLab, waitFor } from "../lab/machine.ts";
import { assertPlanned } from "../lab/planned.ts";
import { record } from "../lab/results.ts";
import { ALONE, creation, creations, creationsAlone, receipts } from "../lab/witness.ts";
import type { Result } from "../support/machine.ts";
import { DRIVER } from "../support/simulated-host.ts";

const options = needsLab();

const IMAGE = reference("busybox");
const ASK = "--annotation=gpu.sluice.dev=nvidia.com/gpu=0";
const WAIT = ["sh", "-c", "trap 'exit 0' TERM; while :; do sleep 0.1; done"];

/** `docker run` with what every container of the lab needs. */
function run(docker: Daemon, args: readonly string[], command: readonly string[]): Result {
  return docker.run("run", "--network=none", ...args, IMAGE, ...command);
}

/** A container that waits; returns its full id, which is also the OCI runtime's. */
function start(docker: Daemon, ...args: string[]): string {
  return docker.must("run", "--detach", "--network=none", ...args, IMAGE, ...WAIT).trim();
}

function exec(docker: Daemon, id: string): string {
  return docker.must("exec", id, "sh", "-c", showGpus(docker.machine));
}

function byDestination(a: { destination: string }, b: { destination: string }): number {
  return a.destination < b.destination ? -1 : 1;
}

/** config.json without what differs between any two containers: ids, and the folders that are named after them. */
function withoutIds(docker: Daemon, id: string, config: string): string {
  const layers = docker.must("inspect", "--format", "{{.GraphDriver.Data.MergedDir}}", id).trim();
  return config
    .replaceAll(id, "ID")
    .replaceAll(id.slice(0, 12), "SHORT")
    .replaceAll(path.basename(path.dirname(layers)), "LAYER");
}

/** A part of a test, which leaves no container to the next. */
async function check(t: TestContext, docker: Daemon, name: string, act: () => void): Promise<void> {
  await t.test(name, () => {
    try {
      act();
    } finally {
      const all = docker.must("ps", "--all", "--quiet").trim().split("\n").filter(Boolean);
      if (all.length > 0) docker.must("rm", "--force", ...all);
    }
  });
}

for (const version of ["28", "26"] as const) {
  const engine = (t: TestContext, more: Partial<DockerOptions> = {}): Daemon =>
    startDocker(t, { version, witness: true, ...more });

  test(`Docker ${version}: what a container asks for is what it gets`, options, async (t) => {
    const docker = engine(t, { runtimes: { alone: ALONE } });
    const { machine } = docker;
    const show = ["sh", "-c", showGpus(machine)];

    await check(t, docker, "a container that asks for nothing is byte for byte what Docker alone makes", () => {
      const id = start(docker, "--runtime=sluice");
      const { before, after } = creation(docker, id);
      assert.equal(after, before);
      assert.equal(exec(docker, id), HAS_NONE);
      const alone = start(docker, "--runtime=alone");
      const [config = ""] = creationsAlone(machine, alone);
      assert.equal(
        withoutIds(docker, id, before),
        withoutIds(docker, alone, config),
        "and Docker makes the same for us",
      );
      assert.deepEqual(receipts(docker), []);
      docker.must("rm", "--force", id, alone);
      record("Docker", docker.version, "nothing asked, `--runtime sluice`", "unchanged");
    });

    const ways: Record<string, string[]> = {
      "`--annotation gpu.sluice.dev=nvidia.com/gpu=0`": [ASK],
      "`--annotation cdi.k8s.io/x=nvidia.com/gpu=0`": ["--annotation=cdi.k8s.io/x=nvidia.com/gpu=0"],
      "`-e NVIDIA_VISIBLE_DEVICES=0`": ["--env=NVIDIA_VISIBLE_DEVICES=0"],
    };
    for (const [way, args] of Object.entries(ways)) {
      await check(t, docker, `asked with ${way}, it gets the planned edits and no others`, () => {
        const id = start(docker, "--runtime=sluice", ...args);
        const plan = assertPlanned(machine, creation(docker, id));
        assert.deepEqual(
          plan.devices.map((device) => device.name),
          ["nvidia.com/gpu=0"],
        );
        assert.equal(exec(docker, id), HAS_GPU_0);
        assert.equal(docker.must("exec", id, "nvidia-smi"), `GPU 0: simulated, driver ${DRIVER}\n`);
        assert.deepEqual(receipts(docker), [`${id}.json`]);
        docker.must("rm", "--force", id);
        assert.deepEqual(receipts(docker), []);
        record("Docker", docker.version, way, "given");
      });
    }

    await check(t, docker, "an image that asks in its environment gets it", () => {
      docker.must("create", "--name=asking", IMAGE);
      docker.must("commit", "--change=ENV NVIDIA_VISIBLE_DEVICES=0", "asking", "lab.test/asking:1");
      const id = docker.must("run", "-d", "--network=none", "--runtime=sluice", "lab.test/asking:1", ...WAIT).trim();
      assertPlanned(machine, creation(docker, id));
      assert.equal(exec(docker, id), HAS_GPU_0);
      docker.must("rm", "--force", id, "asking");
      record("Docker", docker.version, "`ENV NVIDIA_VISIBLE_DEVICES=0` in the image", "given");
    });

    await check(t, docker, "what Docker's own CDI has given is left as it is, also where it is asked for twice", () => {
      const id = start(docker, "--runtime=sluice", "--device=nvidia.com/gpu=0");
      const native = creation(docker, id);
      assert.equal(native.after, native.before);
      assert.equal(exec(docker, id), HAS_GPU_0);
      const twice = start(docker, "--runtime=sluice", "--device=nvidia.com/gpu=0", ASK);
      const { before, after } = creation(docker, twice);
      const [was, is] = [JSON.parse(before), JSON.parse(after ?? "")];
      assert.match(is.annotations["sluice.dev/plan"], /^[0-9a-f]{64}$/);
      delete is.annotations["sluice.dev/plan"];
      for (const config of [was, is]) config.mounts.sort(byDestination);
      assert.deepEqual(is, was, "but for the stamp and the order of the mounts");
      assert.equal(exec(docker, twice), HAS_GPU_0);
      docker.must("rm", "--force", id, twice);
      assert.deepEqual(receipts(docker), []);
      record(
        "Docker",
        docker.version,
        "`--device nvidia.com/gpu=0` (Docker's own CDI)",
        "given by Docker, unchanged by Sluice",
      );
      record("Docker", docker.version, "`--device` and the annotation at once", "given once");
    });

    await check(t, docker, "a device that is not there keeps the container from starting, and Docker says why", () => {
      const r = run(
        docker,
        ["--runtime=sluice", "--name=never", "--annotation=gpu.sluice.dev=nvidia.com/gpu=7"],
        ["true"],
      );
      assert.notEqual(r.code, 0);
      assert.match(r.err, /E_CDI_UNKNOWN_DEVICE.*nvidia\.com\/gpu=7/);
      docker.must("rm", "never");
      assert.deepEqual(receipts(docker), []);
      record("Docker", docker.version, "a device that does not exist", "refused");
    });

    await check(t, docker, "a privileged container, a read-only one and one without capabilities", () => {
      const privileged = start(docker, "--runtime=sluice", "--privileged", ASK);
      assertPlanned(machine, creation(docker, privileged));
      assert.match(exec(docker, privileged), /^nvidia0 opens\nnvidiactl opens\n/);
      const readOnly = start(docker, "--runtime=sluice", "--read-only", ASK);
      assertPlanned(machine, creation(docker, readOnly));
      assert.equal(exec(docker, readOnly), HAS_GPU_0);
      const bare = start(docker, "--runtime=sluice", "--cap-drop=ALL", "--user=1000:1000", ASK);
      assertPlanned(machine, creation(docker, bare));
      assert.match(exec(docker, bare), /^nvidia0 opens\nnvidiactl opens\nnvidia1 absent\nmade not made\n/);
      const unasked = start(docker, "--runtime=sluice", "--privileged");
      const { before, after } = creation(docker, unasked);
      assert.equal(after, before);
      docker.must("rm", "--force", privileged, readOnly, bare, unasked);
      record(
        "Docker",
        docker.version,
        "`--privileged` with the annotation",
        "given; what `--privileged` opens stays open",
      );
      record("Docker", docker.version, "`--read-only` with the annotation", "given");
      record("Docker", docker.version, "`--user` and `--cap-drop ALL` with the annotation", "given");
    });

    await check(
      t,
      docker,
      "a container that shares another's namespaces gets what it asks for, and the other does not",
      () => {
        const other = start(docker, "--runtime=sluice", "--ipc=shareable");
        const shared = [`--pid=container:${other}`, `--ipc=container:${other}`];
        const id = docker
          .must("run", "-d", "--runtime=sluice", `--network=container:${other}`, ...shared, ASK, IMAGE, ...WAIT)
          .trim();
        assertPlanned(machine, creation(docker, id));
        assert.equal(exec(docker, id), HAS_GPU_0);
        assert.equal(exec(docker, other), HAS_NONE);
        docker.must("rm", "--force", id, other);
        record("Docker", docker.version, "namespaces of another container, with the annotation", "given");
      },
    );

    await check(t, docker, "its GPU outlives exec, update, pause, cp, restart, stop and start", () => {
      const id = start(docker, "--runtime=sluice", ASK);
      docker.must("update", "--memory=64m", "--memory-swap=64m", "--cpu-shares=512", "--pids-limit=100", id);
      assert.equal(exec(docker, id), HAS_GPU_0, "after update");
      docker.must("pause", id);
      docker.must("unpause", id);
      assert.equal(exec(docker, id), HAS_GPU_0, "after pause");
      machine.write("/tmp/carried", "carried");
      docker.must("cp", "/tmp/carried", `${id}:/root/carried`);
      assert.equal(docker.must("exec", id, "cat", "/root/carried"), "carried");
      docker.must("cp", `${id}:/root/carried`, "/tmp/back");
      assert.equal(machine.must("cat", "/tmp/back"), "carried");
      docker.must("restart", id);
      assert.equal(exec(docker, id), HAS_GPU_0, "after restart");
      docker.must("stop", id);
      assert.deepEqual(receipts(docker), [], "a stopped container holds nothing");
      docker.must("cp", `${id}:/root/carried`, "/tmp/back-of-stopped");
      docker.must("start", id);
      assert.equal(exec(docker, id), HAS_GPU_0, "after stop and start");
      const all = creations(machine, id);
      assert.equal(all.length, 3);
      for (const each of all) assertPlanned(machine, each);
      docker.must("rm", "--force", id);
      assert.deepEqual(receipts(docker), []);
      for (const way of ["exec", "update", "pause", "cp", "restart", "stop, start"]) {
        record("Docker", docker.version, `\`docker ${way}\``, "kept");
      }
      record("Docker", docker.version, "`docker rm --force`", "released");
    });

    await check(t, docker, "a container that Docker restarts by itself has its GPU again", () => {
      const id = start(docker, "--runtime=sluice", "--restart=always", ASK);
      const pid = docker.must("inspect", "--format", "{{.State.Pid}}", id).trim();
      machine.must("kill", "-9", pid);
      const restarted = (): boolean => {
        const format = "{{.State.Running}} {{.State.Restarting}} {{.RestartCount}}";
        return docker.must("inspect", "--format", format, id).trim() === "true false 1";
      };
      waitFor(restarted, "the restarted container", docker.log);
      assert.equal(exec(docker, id), HAS_GPU_0);
      const all = creations(machine, id);
      assert.equal(all.length, 2);
      for (const each of all) assertPlanned(machine, each);
      docker.must("rm", "--force", id);
      assert.deepEqual(receipts(docker), []);
      record("Docker", docker.version, "`--restart always`, killed", "kept");
    });

    await check(t, docker, "a container that is made anew under its name, as compose does, has its GPU again", () => {
      for (let i = 0; i < 2; i++) {
        docker.must("create", "--network=none", "--runtime=sluice", "--name=web", ASK, IMAGE, ...WAIT);
        docker.must("start", "web");
        assert.equal(exec(docker, "web"), HAS_GPU_0);
        docker.must("restart", "web");
        assert.equal(exec(docker, "web"), HAS_GPU_0);
        assert.equal(receipts(docker).length, 1);
        docker.must("rm", "--force", "web");
        assert.deepEqual(receipts(docker), []);
      }
      record("Docker", docker.version, "create, start, restart, remove, and again (compose)", "kept");
    });

    await check(t, docker, "a container in the foreground is released at its end, with its exit code", () => {
      const r = run(docker, ["--runtime=sluice", "--rm", ASK], ["sh", "-c", `${show[2]}; exit 42`]);
      assert.deepEqual([r.code, r.out, r.err], [42, HAS_GPU_0, ""]);
      waitFor(() => receipts(docker).length === 0, "the release", docker.log);
    });

    await check(t, docker, "50 containers created at once each have what they asked for", () => {
      const script = `for i in $(seq 50); do
          docker run -d --network=none --runtime=sluice --name=many-$i --annotation=gpu.sluice.dev=nvidia.com/gpu=$((i % 2)) \\
            ${IMAGE} sleep 1000 >/tmp/many-$i 2>&1 &
        done
        wait`;
      machine.must("sh", "-c", script);
      const said = machine.must("sh", "-c", "cat /tmp/many-*").trim().split("\n");
      assert.ok(
        said.every((line) => /^[0-9a-f]{64}$/.test(line)),
        said.join("\n"),
      );
      assert.equal(receipts(docker).length, 50);
      for (let i = 1; i <= 50; i++) {
        const id = machine.must("cat", `/tmp/many-${i}`).trim();
        const config = JSON.parse(creation(docker, id).after ?? "");
        const nodes = config.linux.devices.map((device: { path: string }) => device.path);
        assert.ok(nodes.includes(`/dev/nvidia${i % 2}`) && !nodes.includes(`/dev/nvidia${1 - (i % 2)}`), nodes.join());
      }
      docker.must("exec", "many-1", "sh", "-c", "exec 3<>/dev/nvidia1");
      machine.must("sh", "-c", "docker rm --force $(docker ps --quiet --all) >/dev/null");
      assert.deepEqual(receipts(docker), []);
      record("Docker", docker.version, "50 containers at once", "given");
    });
  });

  test(`Docker ${version}: as the default runtime`, options, async (t) => {
    const docker = engine(t, { defaultRuntime: "sluice", liveRestore: true });

    await check(t, docker, "plain containers do not notice, and those that ask get their GPU", () => {
      const plain = start(docker);
      const { before, after } = creation(docker, plain);
      assert.equal(after, before);
      const id = start(docker, ASK);
      assertPlanned(docker.machine, creation(docker, id));
      assert.equal(exec(docker, id), HAS_GPU_0);
      docker.must("rm", "--force", plain, id);
      record("Docker", docker.version, "nothing asked, default runtime", "unchanged");
      record("Docker", docker.version, "the annotation, default runtime", "given");
    });

    await check(t, docker, "a running container keeps its GPU while dockerd is stopped, killed and started", () => {
      const id = start(docker, ASK);
      docker.restart();
      assert.equal(exec(docker, id), HAS_GPU_0);
      docker.kill();
      docker.start();
      assert.equal(exec(docker, id), HAS_GPU_0);
      assert.equal(creations(docker.machine, id).length, 1, "it was never created anew");
      assert.deepEqual(receipts(docker), [`${id}.json`]);
      docker.must("rm", "--force", id);
      assert.deepEqual(receipts(docker), []);
      record("Docker", docker.version, "dockerd restarted and killed, with live-restore", "kept");
    });
  });

  test(`Docker ${version}: a dockerd without live-restore starts its containers anew`, options, (t) => {
    const docker = engine(t);
    const id = start(docker, "--runtime=sluice", "--restart=always", ASK);
    docker.restart();
    const running = (): boolean => docker.run("exec", id, "true").code === 0;
    waitFor(running, "the container after dockerd's restart", docker.log);
    assert.equal(exec(docker, id), HAS_GPU_0);
    assert.equal(creations(docker.machine, id).length, 2);
    docker.kill();
    docker.start();
    waitFor(running, "the container after dockerd was killed", docker.log);
    assert.equal(exec(docker, id), HAS_GPU_0);
    assert.deepEqual(receipts(docker), [`${id}.json`]);
    docker.must("rm", "--force", id);
    assert.deepEqual(receipts(docker), []);
    record("Docker", docker.version, "dockerd restarted and killed, without live-restore", "kept");
  });

  test(`Docker ${version}: user namespaces for all containers (userns-remap)`, options, (t) => {
    const docker = engine(t, { usernsRemap: true });
    const plain = start(docker, "--runtime=sluice");
    const { before, after } = creation(docker, plain);
    assert.equal(after, before);
    assert.match(before, /"uidMappings"/);
    const id = start(docker, "--runtime=sluice", ASK);
    assertPlanned(docker.machine, creation(docker, id));
    // A user namespace's root may make no nodes at all.
    assert.equal(exec(docker, id), "nvidia0 opens\nnvidiactl opens\nnvidia1 absent\nmade not made\n");
    docker.must("rm", "--force", id, plain);
    assert.deepEqual(receipts(docker), []);
    record("Docker", docker.version, "userns-remap, with the annotation", "given");
  });

  test(`Docker ${version}: killed with all its helpers in the middle of a create`, options, (t) => {
    const docker = engine(t);
    const { machine } = docker;
    // The low-level runtime stops where it was asked to create: config.json is edited, the container is not there yet.
    const stuck =
      '#!/bin/sh\ncase " $* " in *\' create \'*) touch /tmp/in-create; sleep 1000 ;; esac\nexec /usr/bin/runc "$@"\n';
    machine.write("/usr/local/bin/stuck", stuck, 0o755);
    machine.write("/etc/sluice/config.toml", '[runtime]\nruntimes = ["/usr/local/bin/stuck"]\n');
    const client = machine.spawn(
      "docker",
      "run",
      "--network=none",
      "--runtime=sluice",
      "--name=victim",
      ASK,
      IMAGE,
      "true",
    );
    waitFor(() => machine.run("test", "-e", "/tmp/in-create").code === 0, "the create", client.log);
    assert.equal(receipts(docker).length, 1);
    // dockerd first, or it starts another containerd.
    docker.kill();
    machine.run("sh", "-c", "kill -9 $(pidof containerd containerd-shim-runc-v2 stuck sleep)");
    const living = (): boolean => machine.run("pidof", "containerd", "containerd-shim-runc-v2").code === 0;
    waitFor(() => !living(), "the end of its helpers", docker.log);
    machine.write("/etc/sluice/config.toml", "");
    docker.start();
    assert.notEqual(docker.must("inspect", "--format", "{{.State.Running}}", "victim").trim(), "true");
    docker.must("rm", "--force", "victim");
    assert.deepEqual(receipts(docker), [], "nothing is held for a container that never was");
    const next = start(docker, "--runtime=sluice", ASK);
    assert.equal(exec(docker, next), HAS_GPU_0);
    docker.must("rm", "--force", next);
    assert.deepEqual(receipts(docker), []);
    record("Docker", docker.version, "Docker killed in the middle of a create", "released");
  });

  // Not crun on v2: Docker asks for the controller io, which v1 has on a machine with both. The VM has it.
  for (const [lowLevel, cgroups] of [
    ["crun", "v1"],
    ["runc", "v2"],
  ] as const) {
    test(`Docker ${version}: with ${lowLevel} beneath on cgroup ${cgroups}`, options, (t) => {
      const docker = engine(t, { lowLevel, cgroups });
      const plain = start(docker, "--runtime=sluice");
      const { before, after } = creation(docker, plain);
      assert.equal(after, before);
      assert.equal(exec(docker, plain), HAS_NONE);
      const id = start(docker, "--runtime=sluice", ASK);
      assertPlanned(docker.machine, creation(docker, id));
      assert.equal(exec(docker, id), HAS_GPU_0);
      docker.must("rm", "--force", id, plain);
      assert.deepEqual(receipts(docker), []);
      record("Docker", docker.version, `nothing asked, ${lowLevel} on cgroup ${cgroups}`, "unchanged");
      record("Docker", docker.version, `the annotation, ${lowLevel} on cgroup ${cgroups}`, "given");
    });
  }
}
