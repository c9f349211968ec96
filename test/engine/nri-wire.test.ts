/** The plugin's protocol with the peers that count: the NRI of real engines, which is written in Go. */

import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import * as fs from "node:fs";
import * as path from "node:path";
import { type TestContext, test } from "node:test";
import { pathToFileURL } from "node:url";
import { create } from "@bufbuild/protobuf";
import type { ContainerEdits, DeviceNode } from "../../src/cdi/spec.ts";
import { toAdjustment } from "../../src/nri/adjust.ts";
import { type ContainerAdjustment, ContainerAdjustmentSchema } from "../../src/nri/gen/nri_pb.js";
import { type PluginState, type RunningPlugin, startPlugin } from "../../src/nri/plugin.node.ts";
import type { Handlers, Runtime } from "../../src/nri/session.ts";
import type { ReadContainer } from "../../src/nri/subject.ts";
import { type Cri, CriError, connect, container, type Pod, pod } from "../lab/cri.ts";
import { needsCrio, startCrio } from "../lab/crio.ts";
import { type Daemon, type EngineOptions, startContainerd } from "../lab/engines.ts";
import { HAS_GPU_0, HAS_GPU_0_NO_MKNOD, showGpus } from "../lab/gpu.ts";
import { reference } from "../lab/images.ts";
import { needsLab } from "../lab/machine.ts";
import { ROOT } from "../support/simulated-host.ts";

const IMAGE = reference("busybox");
/** By its path, since the hostile image has other programs of these names. */
const WAIT = ["/bin/busybox", "sh", "-c", "trap 'exit 0' TERM; while :; do /bin/busybox sleep 0.1; done"];

interface Scene {
  readonly engine: Daemon;
  readonly cri: Cri;
}

/** An engine, and what of its NRI is its own. */
interface Engine {
  readonly name: string;
  readonly options: { skip: string | false };
  start(t: TestContext, images: EngineOptions["images"]): Daemon;
  /** As Configure says. */
  readonly runtime: string;
  /** The minor version of its NRI. */
  readonly nri: number;
  /** Bytes of annotations whose request fits a message. CRI-O has them twice: as they are, and as one of its own. */
  readonly largest: number;
  /** Pods whose annotations are more than fits a message, where their list is split then. */
  readonly pods: number;
  /** What `showGpus` prints. From NRI 0.10 on a container may make the node anew, if it has CAP_MKNOD. */
  readonly hasGpu: string;
  /** Whether a variable of the image stands beside that of the pod. */
  readonly hasTwice: boolean;
}

const ENGINES: readonly Engine[] = [
  {
    name: "containerd 2.1",
    options: needsLab(),
    start: (t, images = []) => startContainerd(t, { version: "2.1", images }),
    runtime: "containerd",
    nri: 8,
    largest: 3_900_000,
    pods: 24,
    hasGpu: HAS_GPU_0,
    hasTwice: true,
  },
  {
    name: "containerd 1.7",
    options: needsLab(),
    start: (t, images = []) => startContainerd(t, { version: "1.7", images }),
    runtime: "containerd",
    nri: 6,
    largest: 3_900_000,
    pods: 4,
    hasGpu: HAS_GPU_0,
    hasTwice: true,
  },
  {
    name: "CRI-O",
    options: needsCrio(),
    start: (t, images = []) => startCrio(t, { images }),
    runtime: "cri-o",
    nri: 11,
    largest: 1_900_000,
    pods: 24,
    hasGpu: HAS_GPU_0_NO_MKNOD,
    hasTwice: false,
  },
];

interface TestPlugin {
  readonly plugin: RunningPlugin;
  /** What it was told, in order: `create NAME`, and states as `registered`. */
  readonly said: string[];
  runtime(): Runtime;
  /** Waits until it was told `what`, `times` times. */
  until(what: string, times?: number): Promise<void>;
}

type Adjust = (container: ReadContainer, runtime: Runtime) => ContainerAdjustment | undefined;

/** A plugin that answers with `adjust`, and has registered. */
async function register(
  t: TestContext,
  { engine }: Scene,
  adjust: Adjust = () => undefined,
  options: { name?: string; index?: string; handlers?: Handlers } = {},
): Promise<TestPlugin> {
  const said: string[] = [];
  let told = (): void => {};
  const note = (what: string): void => {
    said.push(what);
    told();
  };
  let current: Runtime | undefined;
  const plugin = startPlugin({
    name: options.name ?? "sluice",
    index: options.index ?? "90",
    socket: path.join(engine.machine.dir, "run/nri/nri.sock"),
    env: {},
    onState(state: PluginState) {
      if (state.state === "registered") current = state.runtime;
      note(state.state);
    },
    handlers: {
      synchronize: (pods, containers) =>
        note(`synchronize ${pods.map((p) => p.name).sort()} ${containers.map((c) => c.name).sort()}`),
      createContainer(pod, container, runtime) {
        note(`create ${pod.name}/${container.name}`);
        return adjust(container, runtime);
      },
      runPodSandbox: (pod) => note(`run ${pod.name}`),
      stopPodSandbox: (pod) => note(`stop ${pod.name}`),
      removePodSandbox: (pod) => note(`remove ${pod.name}`),
      postCreateContainer: (pod, container) => note(`created ${pod.name}/${container.name}`),
      startContainer: (pod, container) => note(`start ${pod.name}/${container.name}`),
      stopContainer: (pod, container) => note(`stop ${pod.name}/${container.name}`),
      removeContainer: (pod, container) => note(`remove ${pod.name}/${container.name}`),
      ...options.handlers,
    },
  });
  t.after(() => plugin.stop());
  const made: TestPlugin = {
    plugin,
    said,
    runtime: () => current as Runtime,
    async until(what, times = 1) {
      while (said.filter((text) => text === what).length < times) {
        await new Promise<void>((resolve) => {
          told = resolve;
        });
      }
    },
  };
  await made.until("registered");
  return made;
}

/** A container's OCI spec, as containerd keeps it. */
// biome-ignore lint/suspicious/noExplicitAny: a config.json
async function specOf(made: { info(): Promise<Record<string, unknown>> }): Promise<any> {
  return (await made.info())["runtimeSpec"];
}

/** A GPU's device node in the lab, resolved. */
function node(engine: Daemon, name: string): DeviceNode {
  const { rdev, mode } = fs.statSync(path.join(engine.machine.dir, "dev", name));
  return { path: `/dev/${name}`, type: "c", major: rdev >> 8, minor: rdev & 0xff, fileMode: mode & 0o7777 };
}

const adjustment = (edits: ContainerEdits): Adjust => {
  return (made, { nri }) => toAdjustment([edits], { "sluice.dev/plan": "test" }, made, nri);
};

for (const of of ENGINES) {
  test(`NRI of ${of.name}`, of.options, async (t) => {
    const engine = of.start(t, ["busybox", "hostile"]);
    const cri = connect(t, engine.socket, engine.machine.dir);
    await cri.ready();
    const scene: Scene = { engine, cri };
    const run = (p: Pod, more: Partial<Parameters<typeof container>[1]> = {}) =>
      container(p, { image: IMAGE, command: WAIT, ...more });

    await t.test("the plugin is told all of a container's life", async (t) => {
      const plugin = await register(t, scene);
      const { name, nri } = plugin.runtime();
      assert.deepEqual([name, nri], [of.runtime, { major: 0, minor: of.nri }]);
      const p = await pod(t, cri, { name: "life" });
      const c = await run(p, { name: "c" });
      await c.stop();
      await c.remove();
      await p.remove();
      await plugin.until("remove life");
      assert.deepEqual(plugin.said, [
        "connected",
        "synchronize  ",
        "registered",
        "run life",
        "create life/c",
        "created life/c",
        "start life/c",
        "stop life/c",
        "remove life/c",
        "stop life",
        "remove life",
      ]);
    });

    await t.test("edits arrive in the container", async (t) => {
      const edits: ContainerEdits = {
        env: ["OLD=2", "NEW=a=b"],
        deviceNodes: [node(engine, "nvidia0"), node(engine, "nvidiactl")],
        mounts: [
          { hostPath: "/etc/cdi", containerPath: "/opt/cdi", options: ["ro", "nosuid", "nodev", "rbind", "rprivate"] },
        ],
        hooks: [
          {
            hookName: "createContainer",
            path: "/bin/sh",
            args: ["sh", "-c", `cat >/dev/null; echo "$FROM_HOOK" >${engine.machine.shared}/hook`],
            env: ["FROM_HOOK=yes"],
            timeout: 5,
          },
        ],
      };
      await register(t, scene, adjustment(edits));
      const p = await pod(t, cri);
      const c = await run(p, { env: { OLD: "1" } });
      const { out } = await c.exec(
        "sh",
        "-c",
        `${showGpus(engine.machine)}; echo "$OLD $NEW"; ls /opt/cdi; touch /opt/cdi/x`,
      );
      assert.equal(out, `${of.hasGpu}2 a=b\nnvidia.json\n`);
      assert.equal(fs.readFileSync(path.join(engine.machine.shared, "hook"), "utf8"), "yes\n");
      const spec = await specOf(c);
      assert.equal(spec.annotations["sluice.dev/plan"], "test");
      assert.equal(spec.hooks.createContainer[0].timeout, 5);
      const { major, minor } = node(engine, "nvidia0");
      assert.deepEqual(
        spec.linux.resources.devices.filter(
          (d: { minor?: number; major?: number }) => d.major === major && d.minor === minor,
        ),
        ["rw", ...(of.nri >= 10 ? ["m"] : [])].map((access) => ({ allow: true, type: "c", major, minor, access })),
      );
      await p.remove();
    });

    await t.test("what the engine's own CDI has given is not given again", async (t) => {
      const spec = JSON.parse(fs.readFileSync(path.join(engine.machine.dir, "etc/cdi/nvidia.json"), "utf8"));
      const answers: ContainerAdjustment[] = [];
      const edits = [spec.containerEdits ?? {}, spec.devices[0].containerEdits].map((e: ContainerEdits) => ({
        ...e,
        ...(e.deviceNodes ? { deviceNodes: e.deviceNodes.map((d) => node(engine, path.basename(d.path))) } : {}),
      }));
      await register(t, scene, (made, { nri }) => {
        const answer = toAdjustment(edits, {}, made, nri);
        answers.push(answer);
        return answer;
      });
      const p = await pod(t, cri);
      const c = await run(p, { cdiDevices: ["nvidia.com/gpu=0"] });
      assert.deepEqual(answers, [create(ContainerAdjustmentSchema)]);
      const plain = await run(p);
      const [given, adjusted] = [await specOf(c), await specOf(plain)];
      const nodes = (of: { linux: { devices: { path: string }[] } }) => of.linux.devices.map((d) => d.path).sort();
      assert.deepEqual(nodes(adjusted), nodes(given));
      const mounts = (of: { mounts: { destination: string }[] }) => of.mounts.map((m) => m.destination).sort();
      assert.deepEqual(mounts(adjusted), mounts(given));
      assert.deepEqual(adjusted.hooks, given.hooks);
      await p.remove();
    });

    await t.test("answers and requests of 4 KB, 55 KB and 4 MB arrive whole", async (t) => {
      let size = 0;
      const got: number[] = [];
      // In many values: a hundred to a message of a few KB, and as many to one of 4 MB. Other keys are not read.
      const values = (): Record<string, string> =>
        Object.fromEntries(
          Array.from({ length: 100 }, (_, i) => [`gpu.sluice.dev/${i}`, "x".repeat(Math.floor(size / 100))]),
        );
      const plugin = await register(t, scene, (made) => {
        const sent = Object.entries(made.annotations).filter(([key]) => key.startsWith("gpu.sluice.dev/"));
        got.push(sent.map(([, value]) => value).join("").length);
        return create(ContainerAdjustmentSchema, { annotations: values() });
      });
      const p = await pod(t, cri);
      // Exactly what fits Go's buffer, and a byte more, depend on the rest: all sizes around are tried.
      for (size of [...Array.from({ length: 12 }, (_, i) => 1000 + 300 * i), 55_000, 4_000_000]) {
        const c = await run(p, { start: false });
        const { annotations } = await specOf(c);
        assert.equal(annotations["gpu.sluice.dev/99"], "x".repeat(Math.floor(size / 100)), `${size}`);
        await c.remove();
      }
      got.length = 0;
      for (size of [5_000, 80_000, of.largest]) await (await run(p, { start: false, annotations: values() })).remove();
      assert.deepEqual(
        got.map((length) => length - (length % 1000)),
        [5_000, 80_000, of.largest],
      );
      assert.equal(plugin.said.filter((text) => text === "lost").length, 0);
      await p.remove();
    });

    await t.test("50 containers created at once are all adjusted", async (t) => {
      await register(t, scene, (made) => create(ContainerAdjustmentSchema, { env: [{ key: "ID", value: made.id }] }));
      const p = await pod(t, cri);
      const made = await Promise.all(Array.from({ length: 50 }, () => run(p, { start: false })));
      for (const c of made) assert.ok((await specOf(c)).process.env.includes(`ID=${c.id}`));
      await p.remove();
    });

    await t.test("a refusal fails the creation with its text, and the plugin stays", async (t) => {
      let refuses = true;
      const plugin = await register(t, scene, () => {
        if (refuses) throw new Error("no");
        return undefined;
      });
      const p = await pod(t, cri);
      await assert.rejects(run(p), (error: unknown) => {
        assert.ok(error instanceof CriError);
        return /sluice: E_INTERNAL: Error: no; /.test(error.details);
      });
      refuses = false;
      await run(p);
      assert.equal(plugin.said.filter((text) => text === "connected").length, 1);
      await p.remove();
    });

    await t.test("what there is, is told a plugin that comes later, and one that comes again", async (t) => {
      // Above 4 MiB in parts from NRI 0.8 on, before not at all. There must be some of both kinds: of one container it
      // takes none into each part, for ever.
      const count = of.pods;
      const annotations = { "example.com/much": "x".repeat(240 << 10) };
      const names = Array.from({ length: count }, (_, i) => `many-${String(i).padStart(2, "0")}`);
      const pods = await Promise.all(names.map((name) => pod(t, cri, { name, annotations })));
      const few = ["a", "b", "c", "d", "e", "f"];
      await Promise.all(few.map((name, i) => run(pods[i % count] as Pod, { name, start: false })));
      const first = await register(t, scene);
      assert.deepEqual(first.said, ["connected", `synchronize ${names} ${few}`, "registered"]);
      await first.plugin.stop();
      await run(pods[1] as Pod, { name: "missed" });
      const again = await register(t, scene);
      assert.equal(again.said[1], `synchronize ${names} ${few},missed`);
      await Promise.all(pods.map((p) => p.remove()));
    });

    await t.test("a creation that takes too long fails, and does not go on without the plugin", async (t) => {
      const plugin = await register(t, scene, undefined, {
        handlers: { createContainer: () => new Promise(() => {}) },
      });
      const p = await pod(t, cri);
      await assert.rejects(run(p), /E_NRI_LATE/);
      assert.ok(!plugin.said.includes("lost"));
      await p.remove();
    });

    await t.test("a plugin that is cut off since it hangs comes back by itself", async (t) => {
      let hangs = true;
      const plugin = await register(t, scene, () => {
        if (hangs) Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 2_500);
        return undefined;
      });
      const p = await pod(t, cri);
      await run(p, { start: false }); // without us
      hangs = false;
      await plugin.until("registered", 2);
      await run(p, { start: false });
      await p.remove();
    });

    await t.test(
      "a plugin killed while it is asked: the container is created without, and the next plugin is told",
      async (t) => {
        const module = pathToFileURL(path.join(ROOT, "src/nri/plugin.node.ts")).href;
        const socket = path.join(engine.machine.dir, "run/nri/nri.sock");
        const script = `
        import { startPlugin } from ${JSON.stringify(module)};
        startPlugin({
          name: "sluice", index: "90", socket: ${JSON.stringify(socket)}, env: {},
          onState: ({ state }) => console.log(state),
          handlers: { createContainer: () => new Promise(() => console.log("asked")) },
        });
      `;
        const child = spawn(process.execPath, ["--import", "tsx", "--input-type=module", "-e", script], {
          cwd: ROOT,
          stdio: ["ignore", "pipe", "inherit"],
        });
        t.after(() => child.kill("SIGKILL"));
        const says = (what: string) =>
          new Promise<void>((resolve) => child.stdout.on("data", (text) => String(text).includes(what) && resolve()));
        await says("registered");
        const p = await pod(t, cri, { name: "orphan" });
        const asked = says("asked");
        const made = run(p, { name: "c", start: false });
        await asked;
        child.kill("SIGKILL");
        await made;
        const next = await register(t, scene);
        assert.equal(next.said[1], "synchronize orphan c");
        await p.remove();
      },
    );

    await t.test("the runtime restarted, and killed: the plugin is back, and knows what lived on", async (t) => {
      const plugin = await register(t, scene, () =>
        create(ContainerAdjustmentSchema, { env: [{ key: "BACK", value: "yes" }] }),
      );
      const p = await pod(t, cri, { name: "lives" });
      await run(p, { name: "on" });
      for (const round of [0, 1]) {
        if (round === 0) engine.stop();
        else engine.kill();
        engine.start();
        await plugin.until("registered", round + 2);
        await cri.ready();
        const at = plugin.said.lastIndexOf("registered");
        assert.match(plugin.said[at - 1] as string, /^synchronize lives (new-0,)?on$/);
        const c = await run(p, { name: `new-${round}` });
        assert.ok((await specOf(c)).process.env.includes("BACK=yes"));
      }
      await p.remove();
    });

    await t.test("a variable that stands twice is set where that can be said", async (t) => {
      let entry = "";
      await register(t, scene, (made, { nri }) => toAdjustment([{ env: [entry] }], {}, made, nri));
      const p = await pod(t, cri);
      const image = { image: reference("hostile"), command: WAIT };
      for (const [said, env, seen] of [
        ["NVIDIA_VISIBLE_DEVICES=0=8G", { NVIDIA_VISIBLE_DEVICES: "uuid" }, "0=8G"],
        ["NVIDIA_VISIBLE_DEVICES=uuid", { NVIDIA_VISIBLE_DEVICES: "uuid" }, "uuid"],
        ["NVIDIA_VISIBLE_DEVICES=void", {}, "void"],
      ] as const) {
        entry = said;
        const c = await run(p, { ...image, env });
        const shown = ["/bin/busybox", "sh", "-c", 'echo "$NVIDIA_VISIBLE_DEVICES"'];
        assert.equal((await c.exec(...shown)).out, `${seen}\n`, said);
        const environ = ["/bin/busybox", "sh", "-c", "/bin/busybox tr '\\0' '\\n' </proc/1/environ"];
        const lines = (await c.exec(...environ)).out
          .split("\n")
          .filter((line) => line.startsWith("NVIDIA_VISIBLE_DEVICES="));
        assert.deepEqual(lines, [`NVIDIA_VISIBLE_DEVICES=${seen}`], `${said}, of the container's first process`);
      }
      entry = "NVIDIA_VISIBLE_DEVICES=void";
      const twice = run(p, { ...image, env: { NVIDIA_VISIBLE_DEVICES: "uuid" } });
      if (of.hasTwice) await assert.rejects(twice, /E_NRI_ENV/);
      else assert.ok((await specOf(await twice)).process.env.includes(entry));
      await p.remove();
    });

    if (of.nri >= 10) {
      await t.test(
        "a device has the access of its permissions, and a validation that fails is the creation's end",
        async (t) => {
          const deviceNodes = [{ ...node(engine, "nvidia0"), permissions: "r" }];
          await register(t, scene, adjustment({ env: ["X=1"], deviceNodes }), {
            handlers: {
              validateContainerAdjustment: ({ pod, container, adjust, owners, plugins }) =>
                container?.name === "good"
                  ? undefined
                  : `${pod?.name}/${container?.name} has ${adjust?.env[0]?.key} of ${
                      owners?.owners[container?.id ?? ""]?.compound[6]?.owners["X"]
                    }, asked: ${plugins.map(({ name, index }) => `${index}-${name}`)}`,
            },
          });
          const p = await pod(t, cri, { name: "judged" });
          const c = await run(p, { name: "good" });
          const { out } = await c.exec(
            "sh",
            "-c",
            "(: </dev/nvidia0) && echo reads; (: >/dev/nvidia0) || echo does not write",
          );
          assert.equal(out, "reads\ndoes not write\n");
          await assert.rejects(run(p, { name: "bad" }), /judged\/bad has X of 90-sluice, asked: 90-sluice/);
          await p.remove();
        },
      );
    }

    await t.test("what two plugins both set fails the creation, and both are named", async (t) => {
      const gpu = adjustment({ deviceNodes: [node(engine, "nvidia0")], env: ["A=1"] });
      await register(t, scene, gpu, { name: "first", index: "10" });
      let edits: ContainerEdits = {};
      await register(t, scene, (made, runtime) => toAdjustment([edits], {}, made, runtime.nri));
      const p = await pod(t, cri);
      await run(p);
      edits = { env: ["A=1"] };
      await run(p); // equal, and so left out
      const conflicts: ContainerEdits[] = [{ env: ["A=2"] }];
      // Of another plugin's device, the rule that lets it be used is not told. Later versions can be told that by itself.
      if (of.nri < 10) conflicts.push({ deviceNodes: [node(engine, "nvidia0")] });
      for (edits of conflicts) {
        await assert.rejects(run(p), (error: unknown) => {
          assert.ok(error instanceof CriError);
          return /plugins "90-sluice" and "10-first" both tried to set (env A|device \/dev\/nvidia0)/i.test(
            error.details,
          );
        });
      }
      edits = { deviceNodes: [{ ...node(engine, "nvidia1"), path: "/dev/nvidia0" }] };
      await assert.rejects(run(p), /E_NRI_CONFLICT: .*\\"\/dev\/nvidia0\\"|E_NRI_CONFLICT: .*"\/dev\/nvidia0"/);
      await p.remove();
    });
  });
}
