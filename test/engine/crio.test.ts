/** The runtime door in CRI-O, by CRI, as a kubelet drives it; and what a pod can make of the annotations it sees. */

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
  type Pod,
  pod,
} from "../lab/cri.ts";
import { type CrioOptions, needsCrio, startCrio } from "../lab/crio.ts";
import type { Daemon } from "../lab/engines.ts";
import { HAS_GPU_0, HAS_GPU_0_NO_MKNOD, HAS_NONE, showGpus } from "../lab/gpu.ts";
import { reference } from "../lab/images.ts";
import { waitFor } from "../lab/machine.ts";
import { assertPlanned } from "../lab/planned.ts";
import { record } from "../lab/results.ts";
import {
  ALONE,
  assertStamped,
  assertUnchanged,
  creation,
  creations,
  creationsAlone,
  receipts,
} from "../lab/witness.ts";
import { DRIVER } from "../support/simulated-host.ts";

const options = needsCrio();

const IMAGE = reference("busybox");
const ASK = { "gpu.sluice.dev": "nvidia.com/gpu=0" };
const WAIT = ["sh", "-c", "trap 'exit 0' TERM; while :; do sleep 0.1; done"];

interface Scene {
  engine: Daemon;
  cri: Cri;
  /** Runs a container that may make nodes, which CRI-O allows none unless it is asked to. */
  run(pod: Pod, more?: Partial<ContainerOptions>): Promise<Container>;
  /** What GPUs a container has. */
  show(container: Container): Promise<string>;
  noted(way: string, result: string): void;
}

async function start(t: TestContext, given: CrioOptions = {}): Promise<Scene> {
  const engine = startCrio(t, { witness: true, runc: ALONE, ...given });
  const { machine } = engine;
  // Here the door is tested by itself. What a pod is given where there is a kubelet, test/engine/nri.test.ts says.
  const settings = path.join(machine.dir, "etc/sluice/config.toml");
  fs.appendFileSync(settings, '[policy]\ntrust = "engine"\n');
  const cri = connect(t, engine.socket, machine.dir);
  await cri.ready();
  const script = showGpus(machine);
  return {
    engine,
    cri,
    run: (pod, more) => container(pod, { image: IMAGE, command: WAIT, capabilities: { add: ["MKNOD"] }, ...more }),
    async show(made) {
      const { out, err } = await made.exec("sh", "-c", script);
      assert.equal(err, "");
      return out;
    },
    noted: (way, result) => record("CRI-O", engine.version, way, result),
  };
}

/** A config.json of CRI-O without what is another in each pod and container. */
function withoutIds(p: Pod, c: Container, config: string): string {
  return config
    .replaceAll(p.id, "POD")
    .replaceAll(c.id, "CONTAINER")
    .replaceAll(p.metadata.uid, "UID")
    .replace(/[0-9a-f]{8}-([0-9a-f]{4}-){3}[0-9a-f]{12}/g, "NAMESPACE")
    .replace(/\/overlay\/[0-9a-f]{64}\//g, "/overlay/LAYER/")
    .replace(/("io\.kubernetes\.cri-o\.Created": *")[^"]*/, "$1");
}

/** CRI-O gives a privileged container all capabilities that the kernel knows, and runc cannot give what it has not. */
function lacksCapabilities(): string | false {
  const last = Number(fs.readFileSync("/proc/sys/kernel/cap_last_cap", "utf8"));
  const bounding = /^CapBnd:\s*(\S+)$/m.exec(fs.readFileSync("/proc/self/status", "utf8"))?.[1];
  const lacks = BigInt(`0x${bounding}`) !== (1n << BigInt(last + 1)) - 1n;
  return lacks && "needs all capabilities in the bounding set";
}

test("CRI-O: what a container asks for by CRI is what it gets", options, async (t) => {
  const { engine, cri, run, show, noted } = await start(t);
  const { machine } = engine;

  await t.test("the client and the engine understand each other", async (t) => {
    const { runtimeName, runtimeVersion } = await cri.runtime.version();
    assert.equal(runtimeName, "cri-o");
    assert.ok(runtimeVersion.startsWith(engine.version), runtimeVersion);
    const { image } = await cri.image.imageStatus({ image: { image: IMAGE } });
    assert.ok(image?.repoTags.includes(IMAGE));
    const p = await pod(t, cri, { annotations: { "example.com/a": "b" }, labels: { l: "m" } });
    const { items } = await cri.runtime.listPodSandbox({ filter: { labelSelector: { l: "m" } } });
    assert.deepEqual(
      items.map((item) => [item.id, item.annotations]),
      [[p.id, { "example.com/a": "b" }]],
    );
    const c = await run(p, {
      command: ["sh", "-c", "echo out $A; ls /cdi; ls /dev/extra; echo err >&2; exit 7"],
      env: { A: "b=c" },
      mounts: [{ containerPath: "/cdi", hostPath: "/etc/cdi", readonly: true }],
      devices: [{ containerPath: "/dev/extra", hostPath: "/dev/null", permissions: "r" }],
      resources: { memoryLimitInBytes: 64n << 20n },
    });
    assert.equal(await c.wait(), 7);
    assert.equal(await c.out(), "out b=c\nnvidia.json\n/dev/extra\n");
    assert.equal((await c.info())["sandboxID"], p.id);
    await assert.rejects(cri.runtime.startContainer({ containerId: "no-such" }), (error: unknown) => {
      assert.ok(error instanceof CriError);
      return error.code === "NOT_FOUND" && /no-such/.test(error.details);
    });
  });

  await t.test("a container that asks for nothing is byte for byte what CRI-O alone makes", async (t) => {
    const configs: string[] = [];
    for (const handler of ["sluice", "runc"]) {
      const p = await pod(t, cri, { handler, name: "same" });
      const c = await run(p, { name: "same" });
      assert.equal(await show(c), HAS_NONE);
      if (handler === "sluice") assertUnchanged(engine, c.id);
      const config = handler === "sluice" ? creation(engine, c.id).before : creationsAlone(machine, c.id)[0];
      configs.push(withoutIds(p, c, config ?? ""));
      await p.remove();
    }
    const [ours, alone] = configs.map((config) => JSON.parse(config));
    assert.deepEqual(ours, alone, "and CRI-O makes the same for us");
    assert.deepEqual(receipts(engine), []);
    noted("nothing asked", "unchanged");
  });

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
      assert.deepEqual(receipts(engine), [`${c.id}.json`]);
      await c.remove();
      assert.deepEqual(receipts(engine), []);
      noted(way, "given");
    });
  }

  await t.test("what CRI-O's own CDI has given is left as it is, also where it is asked for twice", async (t) => {
    const p = await pod(t, cri, { handler: "sluice" });
    const native = await run(p, { cdiDevices: ["nvidia.com/gpu=0"] });
    assertUnchanged(engine, native.id);
    assert.equal(await show(native), HAS_GPU_0);
    assert.deepEqual(receipts(engine), []);
    noted("CRI field `CDI_devices`", "given by CRI-O, unchanged by Sluice");

    const annotated = await run(p, { annotations: { "cdi.k8s.io/gpu": "nvidia.com/gpu=0" } });
    assertStamped(creation(engine, annotated.id));
    assert.equal(await show(annotated), HAS_GPU_0);
    noted("annotation `cdi.k8s.io/NAME` of the container", "given by CRI-O, stamped by Sluice");

    const twice = await run(p, { cdiDevices: ["nvidia.com/gpu=0"], annotations: ASK });
    assertStamped(creation(engine, twice.id));
    assert.equal(await show(twice), HAS_GPU_0);
    noted("field and annotation at once", "given once");
    assert.deepEqual(receipts(engine), [annotated.id, twice.id].map((id) => `${id}.json`).sort());
    await p.remove();
    assert.deepEqual(receipts(engine), []);
  });

  await t.test(
    "a container that may not have what it asks for is not created, and the kubelet is told why",
    async (t) => {
      const p = await pod(t, cri, { handler: "sluice" });
      const refused = (more: Partial<ContainerOptions>, code: RegExp) =>
        assert.rejects(run(p, { ...more, start: false }), (error: unknown) => {
          assert.ok(error instanceof CriError);
          assert.match(error.details, code);
          return error.code === "UNKNOWN";
        });
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
      noted("a device that does not exist", "refused");
    },
  );

  await t.test("a privileged container", { skip: lacksCapabilities() }, async (t) => {
    const p = await pod(t, cri, { handler: "sluice", privileged: true });
    const unasked = await run(p, { capabilities: {} });
    assertUnchanged(engine, unasked.id);
    noted("nothing asked, privileged", "unchanged");
    const privileged = await run(p, { annotations: ASK, capabilities: {} });
    const { devices } = JSON.parse(creation(engine, privileged.id).after ?? "").linux;
    const nodes = devices.map((device: { path: string }) => device.path);
    assert.equal(new Set(nodes).size, nodes.length, "no node stands there twice");
    assert.match(await show(privileged), /^nvidia0 opens\nnvidiactl opens\n/);
    noted("privileged, with the annotation", "given; what privileged opens stays open");
  });

  await t.test("a read-only container, and one of another user without capabilities", async (t) => {
    const p = await pod(t, cri, { handler: "sluice" });
    const readOnly = await run(p, { annotations: ASK, readonlyRootfs: true });
    assertPlanned(machine, creation(engine, readOnly.id));
    assert.equal(await show(readOnly), HAS_GPU_0);
    assert.notEqual((await readOnly.exec("touch", "/x")).code, 0);
    noted("read-only root, with the annotation", "given");
    const bare = await run(p, { annotations: ASK, user: 1000, capabilities: { drop: ["ALL"] } });
    assertPlanned(machine, creation(engine, bare.id));
    assert.equal(await show(bare), HAS_GPU_0_NO_MKNOD);
    noted("another user, no capabilities, with the annotation", "given");
  });

  await t.test("containers that share another's namespaces each have their own GPUs", async (t) => {
    const p = await pod(t, cri, { handler: "sluice" });
    const target = await run(p);
    const namespaces = { network: NamespaceMode.NODE, pid: NamespaceMode.TARGET, targetId: target.id };
    const beside = await run(p, { annotations: ASK, namespaces });
    assertPlanned(machine, creation(engine, beside.id));
    assert.equal(await show(beside), HAS_GPU_0);
    assert.equal(await show(target), HAS_NONE);
    const namespace = async (c: Container) => (await c.exec("readlink", "/proc/self/ns/pid")).out;
    assert.equal(await namespace(beside), await namespace(target));
    noted("another container's process namespace (target), with the annotation", "given");
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
    noted("a user namespace, with the annotation", "given");
  });

  await t.test("its GPU outlives exec, update, a log that is opened anew and a restart of CRI-O", async (t) => {
    const p = await pod(t, cri, { handler: "sluice" });
    const c = await run(p, { annotations: ASK });
    await c.update({ memoryLimitInBytes: 64n << 20n, cpuShares: 512n });
    assert.equal(await show(c), HAS_GPU_0, "after update");
    noted("exec", "kept");
    noted("UpdateContainerResources", "kept");
    await cri.runtime.reopenContainerLog({ containerId: c.id });
    for (const [how, act] of [
      ["restarted", () => engine.restart()],
      ["killed", () => engine.kill()],
    ] as const) {
      act();
      if (how === "killed") engine.start();
      await cri.ready();
      assert.equal((await c.status()).state, ContainerState.CONTAINER_RUNNING);
      assert.equal(await show(c), HAS_GPU_0, `CRI-O ${how}`);
    }
    assert.equal(creations(machine, c.id).length, 1, "it was never created anew");
    assert.deepEqual(receipts(engine), [`${c.id}.json`]);
    noted("CRI-O restarted and killed", "kept");
    await c.stop(10);
    assert.equal((await c.status()).exitCode, 0, "it was asked to end, and did");
    assert.deepEqual(receipts(engine), [`${c.id}.json`], "CRI-O deletes it when it is removed");
    await c.remove();
    assert.deepEqual(receipts(engine), []);
    const next = await run(p, { annotations: ASK });
    assert.equal(await show(next), HAS_GPU_0, "after the restart");
    await p.remove();
    assert.deepEqual(receipts(engine), []);
    noted("RemoveContainer, RemovePodSandbox", "released");
  });

  await t.test("50 containers created at once each have what they asked for", async (t) => {
    const pods = await Promise.all(Array.from({ length: 5 }, () => pod(t, cri, { handler: "sluice" })));
    const made = await Promise.all(
      Array.from({ length: 50 }, async (_, i) => {
        const gpu = i % 3;
        const asking = gpu === 2 ? {} : { annotations: { "gpu.sluice.dev": `nvidia.com/gpu=${gpu}` } };
        return { gpu, container: await run(pods[i % 5] as Pod, asking) };
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
    await Promise.all(pods.map((p) => p.remove()));
    assert.deepEqual(receipts(engine), []);
    noted("50 containers at once", "given");
  });
});

test("CRI-O: as the default handler", options, async (t) => {
  const { engine, cri, run, show, noted } = await start(t, { defaultHandler: "sluice" });
  const p = await pod(t, cri);
  const plain = await run(p);
  assertUnchanged(engine, plain.id);
  assert.equal(await show(plain), HAS_NONE);
  noted("nothing asked, default handler", "unchanged");
  const c = await run(p, { annotations: ASK });
  assertPlanned(engine.machine, creation(engine, c.id));
  assert.equal(await show(c), HAS_GPU_0);
  noted("the annotation, default handler", "given");
});

test("CRI-O: killed in the middle of a create", options, async (t) => {
  // The low-level runtime waits where it was asked to create: config.json is edited, the container is not there yet.
  const settings = '[runtime]\nruntimes = ["/usr/local/bin/slow"]\n';
  const { engine, cri, run, show, noted } = await start(t, { witness: false, settings });
  const { machine } = engine;
  const slow = `#!/bin/sh
case " $* " in *' create '*)
  if [ -e /run/hold ]; then : >/run/held; fi
  while [ -e /run/hold ]; do sleep 0.05; done ;;
esac
exec /usr/bin/runc "$@"
`;
  machine.write("/usr/local/bin/slow", slow, 0o755);

  for (const victims of ["CRI-O", "CRI-O and conmon"]) {
    await t.test(`${victims}: what is left of it is seen, and the next one works`, async (t) => {
      const p = await pod(t, cri, { handler: "sluice" });
      machine.write("/run/hold", "");
      const created = run(p, { annotations: ASK }).then(
        () => "created",
        (error: unknown) => (error instanceof CriError ? error.code : error),
      );
      for (let i = 0; !fs.existsSync(path.join(machine.dir, "run/held")); i++) {
        assert.ok(i < 1200, "the low-level runtime is called");
        await new Promise((resolve) => setTimeout(resolve, 50));
      }
      const held = receipts(engine);
      assert.equal(held.length, 1);
      const id = path.basename(held[0] as string, ".json");
      engine.kill();
      assert.equal(await created, "UNAVAILABLE");
      if (victims !== "CRI-O")
        machine.must("sh", "-c", "kill -9 $(ps -o pid,args | awk '/[c]onmon|[l]ocal.bin.slow/ { print $1 }')");
      for (const file of ["hold", "held"]) fs.rmSync(path.join(machine.dir, "run", file));
      // Of a folder that is not there yet, it lists nothing.
      const runc = () => machine.run("runc", "--root", "/run/runc", "list", "--quiet").out.trim();
      // conmon goes on with what it was asked for.
      if (victims === "CRI-O") waitFor(() => runc() === id, "the container", engine.log);
      engine.start();
      await cri.ready();
      const { containers } = await cri.runtime.listContainers();
      assert.deepEqual(containers, [], "CRI-O has forgotten it");
      await p.remove();
      assert.equal(runc(), victims === "CRI-O" ? id : "", "and does not delete it");
      assert.deepEqual(receipts(engine), held, "so that nobody has said it is gone");
      const deleted = machine.run("sluice-runtime", "--root=/run/runc", "delete", "--force", id);
      assert.equal(deleted.code, 0, deleted.err);
      assert.deepEqual(receipts(engine), []);

      const q = await pod(t, cri, { handler: "sluice" });
      assert.equal(await show(await run(q, { annotations: ASK })), HAS_GPU_0);
      await q.remove();
      assert.deepEqual(receipts(engine), []);
      noted(`${victims} killed in the middle of a create`, "CRI-O forgets it; released by `delete --force`");
    });
  }
});
