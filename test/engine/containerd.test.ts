/** The runtime door in containerd: by CRI, as a kubelet drives it, and by `ctr`. */

import assert from "node:assert/strict";
import * as fs from "node:fs";
import * as path from "node:path";
import { type TestContext, test } from "node:test";
import {
  type Container,
  type ContainerOptions,
  ContainerState,
  type Cri,
  CriError,
  connect,
  container,
  NamespaceMode,
  pod,
} from "../lab/cri.ts";
import { type ContainerdOptions, type Daemon, startContainerd } from "../lab/engines.ts";
import { HAS_GPU_0, HAS_GPU_0_NO_MKNOD, HAS_NONE, showGpus } from "../lab/gpu.ts";
import { reference } from "../lab/images.ts";
import { type Machine, needsLab, waitFor } from "../lab/machine.ts";
import { bringNetwork } from "../lab/network.ts";
import { assertPlanned } from "../lab/planned.ts";
import { record } from "../lab/results.ts";
import {
  ALONE,
  assertStamped,
  assertUnchanged,
  BEFORE,
  creation,
  creations,
  creationsAlone,
  receipts,
} from "../lab/witness.ts";
import { DRIVER } from "../support/simulated-host.ts";

const options = needsLab();

const IMAGE = reference("busybox");
const ASK = { "gpu.sluice.dev": "nvidia.com/gpu=0" };
const WAIT = ["sh", "-c", "trap 'exit 0' TERM; while :; do sleep 0.1; done"];

interface Scene {
  engine: Daemon;
  cri: Cri;
}

/**
 * containerd as its administrator sets it up for Sluice. A handler lets through to config.json only those annotations
 * that its settings name, and a pattern's `*` matches no slash (Go's path.Match): hence two for each.
 */
async function start(t: TestContext, given: ContainerdOptions): Promise<Scene> {
  const engine = startContainerd(t, { witness: true, ...given });
  const { machine } = engine;
  const file = path.join(machine.dir, "etc/containerd/config.toml");
  const patterns = '["gpu.sluice.dev", "gpu.sluice.dev/*", "cdi.k8s.io/*"]';
  const config = fs
    .readFileSync(file, "utf8")
    .replace(/((?:pod|container)_annotations = ).*/g, `$1${patterns}`)
    .replace('BinaryName = "runc"', `BinaryName = "${ALONE}"`);
  fs.writeFileSync(file, config);
  bringNetwork(machine);
  // Here the door is tested by itself. What a pod is given where there is a kubelet, test/engine/nri.test.ts says.
  const settings = path.join(machine.dir, "etc/sluice/config.toml");
  fs.appendFileSync(settings, '[policy]\ntrust = "engine"\n');
  engine.restart();
  const cri = connect(t, engine.socket, machine.dir);
  await cri.ready();
  return { engine, cri };
}

/** The processes of a machine whose command line matches. */
function processes(machine: Machine, command: RegExp): string[] {
  const proc = path.join(machine.dir, "proc");
  return fs.readdirSync(proc).filter((pid) => {
    if (!/^\d+$/.test(pid)) return false;
    try {
      return command.test(fs.readFileSync(path.join(proc, pid, "cmdline"), "utf8"));
    } catch {
      return false; // it has ended
    }
  });
}

/** SIGKILL to all of them, and waits for their end. */
function killAll(machine: Machine, command: RegExp, log: () => string): void {
  const over = (): boolean => {
    const pids = processes(machine, command);
    // One of them may end before its turn comes, a shell's child that has not yet become its command, say.
    if (pids.length > 0) machine.run("kill", "-KILL", ...pids);
    return pids.length === 0;
  };
  assert.ok(!over(), "there are some");
  waitFor(over, `the end of ${command}`, log);
}

async function show(made: Container): Promise<string> {
  const machine = made.pod.cri.root;
  assert.notEqual(machine, "");
  const { out, err } = await made.exec("sh", "-c", scripts.get(made.pod.cri) ?? "");
  assert.equal(err, "");
  return out;
}

const scripts = new WeakMap<Cri, string>();

for (const version of ["2.1", "1.7"] as const) {
  const noted = (engine: Daemon, way: string, result: string) => record("containerd", engine.version, way, result);

  test(`containerd ${version}: what a container asks for by CRI is what it gets`, options, async (t) => {
    const { engine, cri } = await start(t, { version });
    const { machine } = engine;
    scripts.set(cri, showGpus(machine));
    const run = (p: Parameters<typeof container>[0], more: Partial<ContainerOptions> = {}) =>
      container(p, { image: IMAGE, command: WAIT, ...more });

    await t.test("the client and the engine understand each other", async (t) => {
      const { runtimeName, runtimeVersion } = await cri.runtime.version();
      assert.equal(runtimeName, "containerd");
      assert.ok(runtimeVersion.replace(/^v/, "").startsWith(engine.version), runtimeVersion);
      const { status } = await cri.runtime.status();
      assert.ok(status?.conditions.some((condition) => condition.type === "RuntimeReady" && condition.status));
      const { image } = await cri.image.imageStatus({ image: { image: IMAGE } });
      assert.ok(image?.repoTags.includes(IMAGE));
      const { images } = await cri.image.listImages();
      assert.ok(images.some((other) => other.id === image?.id && other.size > 0n));

      const p = await pod(t, cri, { annotations: { "example.com/a": "b" }, labels: { l: "m" } });
      const { items } = await cri.runtime.listPodSandbox({ filter: { labelSelector: { l: "m" } } });
      assert.deepEqual(
        items.map((item) => [item.id, item.annotations]),
        [[p.id, { "example.com/a": "b" }]],
      );
      const sandbox = await cri.runtime.podSandboxStatus({ podSandboxId: p.id });
      assert.equal(sandbox.status?.metadata?.name, p.config.metadata?.name);
      const c = await container(p, {
        image: IMAGE,
        command: [
          "sh",
          "-c",
          "echo out $A; ls /cdi; ls /dev/extra; echo err >&2; head -c 40000 /dev/zero | tr '\\0' x; echo; exit 7",
        ],
        env: { A: "b=c" },
        mounts: [{ containerPath: "/cdi", hostPath: "/etc/cdi", readonly: true }],
        devices: [{ containerPath: "/dev/extra", hostPath: "/dev/null", permissions: "r" }],
        resources: { memoryLimitInBytes: 64n << 20n },
      });
      assert.equal(await c.wait(), 7);
      assert.deepEqual(
        (await c.log()).filter((line) => line.stream === "stderr").map((line) => line.text),
        ["err\n"],
      );
      assert.equal(await c.out(), `out b=c\nnvidia.json\n/dev/extra\n${"x".repeat(40000)}\n`);
      const { resources, state } = await c.status();
      assert.deepEqual([resources?.linux?.memoryLimitInBytes, state], [64n << 20n, ContainerState.CONTAINER_EXITED]);
      assert.equal((await c.info())["sandboxID"], p.id);
      const { containers } = await cri.runtime.listContainers({ filter: { podSandboxId: p.id } });
      assert.deepEqual(
        containers.map((other) => other.id),
        [c.id],
      );
      await assert.rejects(cri.runtime.startContainer({ containerId: "no-such" }), (error: unknown) => {
        assert.ok(error instanceof CriError);
        return error.code === "NOT_FOUND" && /no-such/.test(error.details);
      });
    });

    await t.test(
      "a pod and a container that ask for nothing are byte for byte what containerd alone makes",
      async (t) => {
        const made: { pod: string; container: string; configs: string[] }[] = [];
        for (const handler of ["sluice", "runc"]) {
          const p = await pod(t, cri, { handler, name: "same" });
          const c = await run(p, { name: "same" });
          assert.equal(await show(c), HAS_NONE);
          const ids = [p.id, c.id];
          if (handler === "sluice") for (const id of ids) assertUnchanged(engine, id);
          const configs = ids.map((id) =>
            handler === "sluice" ? creation(engine, id).before : (creationsAlone(machine, id)[0] ?? ""),
          );
          made.push({ pod: p.id, container: c.id, configs });
          await p.remove();
        }
        const [ours, alone] = made.map(({ pod, container, configs }) =>
          configs.map((text) =>
            text
              .replaceAll(pod, "POD")
              .replaceAll(container, "CONTAINER")
              .replace(/uid-\d+-\d+/g, "UID")
              .replace(/\/proc\/\d+\/ns\//g, "/proc/PID/ns/"),
          ),
        );
        assert.deepEqual(ours, alone, "and containerd makes the same for us");
        assert.deepEqual(receipts(engine), []);
        noted(engine, "nothing asked", "unchanged");
      },
    );

    const ways: Record<string, { pod?: Record<string, string>; container?: Partial<ContainerOptions> }> = {
      "annotation `gpu.sluice.dev` of the container": { container: { annotations: ASK } },
      "annotation `gpu.sluice.dev` of the pod": { pod: ASK },
      "annotation `gpu.sluice.dev/pod` of the pod": { pod: { "gpu.sluice.dev/pod": "nvidia.com/gpu=0" } },
      "annotation `gpu.sluice.dev/container.NAME` of the pod": {
        pod: { "gpu.sluice.dev/container.train": "nvidia.com/gpu=0", "gpu.sluice.dev/pod": "nvidia.com/gpu=1" },
        container: { name: "train" },
      },
      "variable `NVIDIA_VISIBLE_DEVICES=0`": { container: { env: { NVIDIA_VISIBLE_DEVICES: "0" } } },
    };
    for (const [way, asking] of Object.entries(ways)) {
      await t.test(`asked with ${way}, it gets the planned edits and no others`, async (t) => {
        const p = await pod(t, cri, { handler: "sluice", annotations: asking.pod ?? {} });
        const c = await run(p, asking.container);
        const plan = assertPlanned(machine, creation(engine, c.id));
        assert.deepEqual(
          plan.devices.map((device) => device.name),
          ["nvidia.com/gpu=0"],
        );
        assert.equal(await show(c), HAS_GPU_0);
        assert.equal((await c.exec("nvidia-smi")).out, `GPU 0: simulated, driver ${DRIVER}\n`);
        assertUnchanged(engine, p.id);
        assert.deepEqual(receipts(engine), [`${c.id}.json`]);
        await c.stop();
        assert.deepEqual(receipts(engine), []);
        noted(engine, way, "given");
      });
    }

    await t.test(
      "what containerd's own CDI has given is left as it is, also where it is asked for twice",
      async (t) => {
        const p = await pod(t, cri, { handler: "sluice" });
        const native = await run(p, { cdiDevices: ["nvidia.com/gpu=0"] });
        assertUnchanged(engine, native.id);
        assert.equal(await show(native), HAS_GPU_0);
        assert.deepEqual(receipts(engine), []);
        noted(engine, "CRI field `CDI_devices`", "given by containerd, unchanged by Sluice");

        const annotated = await run(p, { annotations: { "cdi.k8s.io/gpu": "nvidia.com/gpu=0" } });
        assertStamped(creation(engine, annotated.id));
        assert.equal(await show(annotated), HAS_GPU_0);
        noted(engine, "annotation `cdi.k8s.io/NAME` of the container", "given by containerd, stamped by Sluice");

        const twice = await run(p, { cdiDevices: ["nvidia.com/gpu=0"], annotations: ASK });
        assertStamped(creation(engine, twice.id));
        assert.equal(await show(twice), HAS_GPU_0);
        noted(engine, "field and annotation at once", "given once");
        assert.deepEqual(receipts(engine), [annotated.id, twice.id].map((id) => `${id}.json`).sort());
        await p.remove();
        assert.deepEqual(receipts(engine), []);
      },
    );

    await t.test(
      "a container that may not have what it asks for does not start, and the kubelet is told why",
      async (t) => {
        const p = await pod(t, cri, { handler: "sluice" });
        const refused = async (more: Partial<ContainerOptions>, code: RegExp) => {
          const c = await run(p, { ...more, start: false });
          await assert.rejects(c.start(), (error: unknown) => {
            assert.ok(error instanceof CriError);
            assert.match(error.details, code);
            return error.code === "UNKNOWN";
          });
          assert.equal((await c.status()).state, ContainerState.CONTAINER_EXITED);
          await c.remove();
        };
        const absent = { "gpu.sluice.dev": "nvidia.com/gpu=7" };
        await refused({ annotations: absent }, /sluice: E_CDI_UNKNOWN_DEVICE: .*nvidia\.com\/gpu=7/);
        await refused({ env: { NVIDIA_VISIBLE_DEVICES: "7" } }, /sluice: E_CDI_UNKNOWN_DEVICE: .*nvidia\.com\/gpu=7/);
        await refused({ annotations: { "gpu.sluice.dev": "x" } }, /sluice: E_REQUEST_SYNTAX: /);
        await refused(
          { annotations: { "gpu.sluice.dev/no": "x" } },
          /sluice: E_REQUEST_ANNOTATION: .*gpu\.sluice\.dev\/no/,
        );
        assert.deepEqual(receipts(engine), []);
        assert.equal(await show(await run(p, { annotations: ASK })), HAS_GPU_0, "the pod is as good as before");
        noted(engine, "a device that does not exist", "refused");
      },
    );

    await t.test("a privileged container, a read-only one, and one of another user without capabilities", async (t) => {
      const p = await pod(t, cri, { handler: "sluice", privileged: true });
      const unasked = await run(p);
      assertUnchanged(engine, unasked.id);
      noted(engine, "nothing asked, privileged", "unchanged");
      const privileged = await run(p, { annotations: ASK });
      const { devices } = JSON.parse(creation(engine, privileged.id).after ?? "").linux;
      const nodes = devices.map((device: { path: string }) => device.path);
      assert.equal(new Set(nodes).size, nodes.length, "no node stands there twice");
      assert.match(await show(privileged), /^nvidia0 opens\nnvidiactl opens\n/);
      noted(engine, "privileged, with the annotation", "given; what privileged opens stays open");
      await p.remove();

      const q = await pod(t, cri, { handler: "sluice" });
      const readOnly = await run(q, { annotations: ASK, readonlyRootfs: true });
      assertPlanned(machine, creation(engine, readOnly.id));
      assert.equal(await show(readOnly), HAS_GPU_0);
      assert.notEqual((await readOnly.exec("touch", "/x")).code, 0);
      noted(engine, "read-only root, with the annotation", "given");
      const bare = await run(q, { annotations: ASK, user: 1000, capabilities: { drop: ["ALL"] } });
      assertPlanned(machine, creation(engine, bare.id));
      assert.equal(await show(bare), HAS_GPU_0_NO_MKNOD);
      noted(engine, "another user, no capabilities, with the annotation", "given");
    });

    await t.test("containers that share a pod's or another's namespaces each have their own GPUs", async (t) => {
      const p = await pod(t, cri, { handler: "sluice", namespaces: { pid: NamespaceMode.POD } });
      const without = await run(p);
      const shared = await run(p, { annotations: ASK });
      assertPlanned(machine, creation(engine, shared.id));
      assert.equal(await show(shared), HAS_GPU_0);
      assert.equal(await show(without), HAS_NONE);
      noted(engine, "the pod's process namespace, with the annotation", "given");

      const q = await pod(t, cri, { handler: "sluice" });
      const target = await run(q);
      const namespaces = { network: NamespaceMode.NODE, pid: NamespaceMode.TARGET, targetId: target.id };
      const beside = await run(q, { annotations: ASK, namespaces });
      assertPlanned(machine, creation(engine, beside.id));
      assert.equal(await show(beside), HAS_GPU_0);
      assert.equal(await show(target), HAS_NONE);
      const namespace = async (c: Container) => (await c.exec("readlink", "/proc/self/ns/pid")).out;
      assert.equal(await namespace(beside), await namespace(target));
      noted(engine, "another container's process namespace (target), with the annotation", "given");
    });

    await t.test("a pod in a user namespace", async (t) => {
      const ids = [{ hostId: 100_000, containerId: 0, length: 65_536 }];
      const userns = { mode: NamespaceMode.POD, uids: ids, gids: ids };
      const namespaces = { network: NamespaceMode.POD, pid: NamespaceMode.CONTAINER, usernsOptions: userns };
      const p = await pod(t, cri, { handler: "sluice", namespaces });
      const plain = await run(p);
      assertUnchanged(engine, plain.id);
      assert.equal((await plain.exec("cat", "/proc/self/uid_map")).out.trim().replace(/ +/g, " "), "0 100000 65536");
      const c = await run(p, { annotations: ASK });
      assertPlanned(machine, creation(engine, c.id));
      assert.equal(await show(c), HAS_GPU_0_NO_MKNOD);
      assert.equal(
        (await c.exec("cat", `/usr/lib/x86_64-linux-gnu/libcuda.so.${DRIVER}`)).out,
        `simulated libcuda.so ${DRIVER}\n`,
      );
      noted(engine, "a user namespace, with the annotation", "given");
    });

    await t.test("its GPU outlives exec, update, a log that is opened anew and a restart of containerd", async (t) => {
      const p = await pod(t, cri, { handler: "sluice" });
      const c = await run(p, { annotations: ASK });
      await c.update({ memoryLimitInBytes: 64n << 20n, cpuShares: 512n });
      assert.equal(await show(c), HAS_GPU_0, "after update");
      noted(engine, "exec", "kept");
      noted(engine, "UpdateContainerResources", "kept");
      await cri.runtime.reopenContainerLog({ containerId: c.id });
      for (const [how, act] of [
        ["restarted", () => engine.restart()],
        ["killed", () => engine.kill()],
      ] as const) {
        act();
        if (how === "killed") engine.start();
        await cri.ready();
        assert.equal((await c.status()).state, ContainerState.CONTAINER_RUNNING);
        assert.equal(await show(c), HAS_GPU_0, `containerd ${how}`);
      }
      assert.equal(creations(machine, c.id).length, 1, "it was never created anew");
      assert.deepEqual(receipts(engine), [`${c.id}.json`]);
      noted(engine, "containerd restarted and killed", "kept");
      await c.stop(10);
      assert.equal((await c.status()).exitCode, 0, "it was asked to end, and did");
      assert.deepEqual(receipts(engine), []);
      await c.remove();
      const next = await run(p, { annotations: ASK });
      assert.equal(await show(next), HAS_GPU_0, "after the restart");
      await p.remove();
      assert.deepEqual(receipts(engine), []);
      noted(engine, "StopContainer, RemovePodSandbox", "released");
    });

    await t.test("50 containers created at once each have what they asked for", async (t) => {
      const pods = await Promise.all(Array.from({ length: 5 }, () => pod(t, cri, { handler: "sluice" })));
      const made = await Promise.all(
        Array.from({ length: 50 }, async (_, i) => {
          const gpu = i % 3;
          const asking = gpu === 2 ? {} : { annotations: { "gpu.sluice.dev": `nvidia.com/gpu=${gpu}` } };
          return { gpu, container: await run(pods[i % 5] as (typeof pods)[number], asking) };
        }),
      );
      assert.equal(receipts(engine).length, made.filter(({ gpu }) => gpu !== 2).length);
      for (const { gpu, container } of made) {
        const nodes = JSON.parse(creation(engine, container.id).after ?? "").linux.devices ?? [];
        assert.deepEqual(
          nodes.map((node: { path: string }) => node.path),
          gpu === 2 ? [] : ["/dev/nvidiactl", `/dev/nvidia${gpu}`],
        );
        if (gpu === 2) assertUnchanged(engine, container.id);
      }
      const [zero, one, none] = made;
      assert.equal(await show((zero as (typeof made)[number]).container), HAS_GPU_0);
      assert.match(
        await show((one as (typeof made)[number]).container),
        /^nvidia0 absent\nnvidiactl opens\nnvidia1 opens\n/,
      );
      assert.equal(await show((none as (typeof made)[number]).container), HAS_NONE);
      await Promise.all(pods.map((p) => p.remove()));
      assert.deepEqual(receipts(engine), []);
      noted(engine, "50 containers at once", "given");
    });
  });

  test(`containerd ${version}: as the default handler`, options, async (t) => {
    const { engine, cri } = await start(t, { version, defaultHandler: "sluice" });
    scripts.set(cri, showGpus(engine.machine));
    const p = await pod(t, cri);
    const plain = await container(p, { image: IMAGE, command: WAIT });
    for (const id of [p.id, plain.id]) assertUnchanged(engine, id);
    assert.equal(await show(plain), HAS_NONE);
    noted(engine, "nothing asked, default handler", "unchanged");
    const c = await container(p, { image: IMAGE, command: WAIT, annotations: ASK });
    assertPlanned(engine.machine, creation(engine, c.id));
    assert.equal(await show(c), HAS_GPU_0);
    noted(engine, "the annotation, default handler", "given");
  });

  test(`containerd ${version}: killed in the middle of a create`, options, async (t) => {
    // The low-level runtime waits where it was asked to create: config.json is edited, the container is not there yet.
    const settings = '[runtime]\nruntimes = ["/usr/local/bin/slow"]\n';
    const { engine, cri } = await start(t, { version, witness: false, settings });
    const { machine } = engine;
    scripts.set(cri, showGpus(machine));
    const slow = `#!/bin/sh
case " $* " in *' create '*)
  if [ -e /run/hold ]; then : >/run/held; fi
  while [ -e /run/hold ]; do sleep 0.05; done ;;
esac
exec /usr/bin/runc "$@"
`;
    machine.write("/usr/local/bin/slow", slow, 0o755);
    const held = () => fs.existsSync(path.join(machine.dir, "run/held"));

    for (const victims of ["containerd", "containerd and its shim"]) {
      await t.test(`${victims}: nothing is held for a container that never was, and the next one works`, async (t) => {
        const p = await pod(t, cri, { handler: "sluice" });
        const c = await container(p, { image: IMAGE, command: WAIT, annotations: ASK, start: false });
        machine.write("/run/hold", "");
        const started = c.start().then(
          () => "started",
          (error: unknown) => (error instanceof CriError ? error.code : error),
        );
        for (let i = 0; !held(); i++) {
          assert.ok(i < 1200, "the low-level runtime is called");
          await new Promise((resolve) => setTimeout(resolve, 50));
        }
        assert.deepEqual(receipts(engine), [`${c.id}.json`]);
        engine.kill();
        assert.equal(await started, "UNAVAILABLE");
        if (victims !== "containerd") killAll(machine, /containerd-shim|\/usr\/local\/bin\/slow/, engine.log);
        for (const file of ["hold", "held"]) fs.rmSync(path.join(machine.dir, "run", file));
        engine.start();
        await cri.ready();
        await p.remove();
        waitFor(() => receipts(engine).length === 0, "the release", engine.log);
        assert.equal(machine.must("runc", "--root", "/run/containerd/runc/k8s.io", "list", "--quiet"), "");

        const q = await pod(t, cri, { handler: "sluice" });
        const next = await container(q, { image: IMAGE, command: WAIT, annotations: ASK });
        assert.equal(await show(next), HAS_GPU_0);
        await q.remove();
        assert.deepEqual(receipts(engine), []);
        noted(engine, `${victims} killed in the middle of a create`, "released");
      });
    }
  });

  test(`containerd ${version}: what a container asks for by ctr is what it gets`, options, async (t) => {
    const { engine } = await start(t, { version });
    const { machine } = engine;
    const script = ["sh", "-c", showGpus(machine)];
    const run = (id: string, ...args: string[]) =>
      engine.run("run", "--rm", "--runc-binary", BEFORE, ...args, IMAGE, id, ...script);
    const noted = (way: string, result: string) => record("containerd", `${engine.version}, ctr`, way, result);

    await t.test("a container that asks for nothing is byte for byte what ctr alone makes", () => {
      const r = run("plain");
      assert.deepEqual([r.code, r.out, r.err], [0, HAS_NONE, ""]);
      assertUnchanged(engine, "plain");
      assert.deepEqual(receipts(engine), []);
      noted("nothing asked", "unchanged");
    });

    const ways: Record<string, string[]> = {
      "`--annotation gpu.sluice.dev=nvidia.com/gpu=0`": ["--annotation", "gpu.sluice.dev=nvidia.com/gpu=0"],
      "`--annotation cdi.k8s.io/x=nvidia.com/gpu=0`": ["--annotation", "cdi.k8s.io/x=nvidia.com/gpu=0"],
      "`--env NVIDIA_VISIBLE_DEVICES=0`": ["--env", "NVIDIA_VISIBLE_DEVICES=0"],
    };
    for (const [index, [way, args]] of Object.entries(ways).entries()) {
      await t.test(`asked with ${way}, it gets the planned edits and no others`, () => {
        const id = `asks-${index}`;
        const r = run(id, ...args);
        assert.deepEqual([r.code, r.out, r.err], [0, HAS_GPU_0, ""]);
        assertPlanned(machine, creation(engine, id));
        assert.deepEqual(receipts(engine), []);
        noted(way, "given");
      });
    }

    await t.test("what ctr's own CDI has given is left as it is", () => {
      const r = run("native", "--device", "nvidia.com/gpu=0");
      if (version === "1.7") {
        assert.match(r.err, /error stating device path: stat nvidia\.com\/gpu=0/);
        noted("`--device nvidia.com/gpu=0` (ctr's own CDI)", "ctr cannot");
        return;
      }
      assert.deepEqual([r.code, r.out, r.err], [0, HAS_GPU_0, ""]);
      assertUnchanged(engine, "native");
      const twice = run("twice", "--device", "nvidia.com/gpu=0", "--annotation", "gpu.sluice.dev=nvidia.com/gpu=0");
      assert.deepEqual([twice.code, twice.out], [0, HAS_GPU_0]);
      assertStamped(creation(engine, "twice"));
      assert.deepEqual(receipts(engine), []);
      noted("`--device nvidia.com/gpu=0` (ctr's own CDI)", "given by ctr, unchanged by Sluice");
      noted("`--device` and the annotation at once", "given once");
    });

    await t.test("a device that is not there keeps the container from starting, and ctr says why", () => {
      const r = run("never", "--annotation", "gpu.sluice.dev=nvidia.com/gpu=7");
      assert.notEqual(r.code, 0);
      assert.match(r.err, /E_CDI_UNKNOWN_DEVICE.*nvidia\.com\/gpu=7/);
      assert.deepEqual(receipts(engine), []);
      noted("a device that does not exist", "refused");
    });

    await t.test("a privileged container and a read-only one", () => {
      const ask = ["--annotation", "gpu.sluice.dev=nvidia.com/gpu=0"];
      const privileged = run("privileged", "--privileged", ...ask);
      assert.match(privileged.out, /^nvidia0 opens\nnvidiactl opens\n/);
      assertPlanned(machine, creation(engine, "privileged"));
      noted("`--privileged` with the annotation", "given; what `--privileged` opens stays open");
      const readOnly = run("read-only", "--read-only", ...ask);
      assert.equal(readOnly.out, HAS_GPU_0);
      assertPlanned(machine, creation(engine, "read-only"));
      noted("`--read-only` with the annotation", "given");
    });

    await t.test("a second process in a task has its GPU too", () => {
      const ask = ["--annotation", "gpu.sluice.dev=nvidia.com/gpu=0"];
      engine.must("run", "--detach", "--runc-binary", BEFORE, ...ask, IMAGE, "stays", ...WAIT);
      assert.deepEqual(receipts(engine), ["stays.json"]);
      assert.equal(engine.must("tasks", "exec", "--exec-id", "second", "stays", ...script), HAS_GPU_0);
      engine.must("tasks", "kill", "--signal", "SIGKILL", "stays");
      waitFor(() => / STOPPED/.test(engine.must("tasks", "list")), "the task's end", engine.log);
      engine.must("tasks", "rm", "stays");
      engine.must("containers", "rm", "stays");
      assert.deepEqual(receipts(engine), []);
      noted("`ctr tasks exec`", "kept");
    });
  });
}
