/**
 * The specs that `sluice cdi generate` writes, in engines' own CDI, where none of our doors runs: each fixture host's
 * specs are accepted, and what a container is given by them is right.
 *
 * The GPUs have no driver behind them. A node that a container may open gives ENXIO then, and EPERM where the device
 * cgroup refuses it; one host has nodes that do open.
 */

import assert from "node:assert/strict";
import * as fs from "node:fs";
import * as os from "node:os";
import * as path from "node:path";
import { after, before, type TestContext, test } from "node:test";
import { LIBRARIES, names as libraryNames } from "../fixtures/hosts/driver-files.ts";
import { DRIVER, HOSTS, type Host, type HostName, openable } from "../fixtures/hosts/hosts.ts";
import {
  type Asked,
  containerd,
  docker,
  install,
  type LaidHost,
  type LayOptions,
  layHost,
  makeTools,
  type Native,
  podman,
  showKernel,
} from "../lab/hosts.ts";
import type { ImageName } from "../lab/images.ts";
import { needsLab } from "../lab/machine.ts";
import { record } from "../lab/results.ts";
import { needs, type Result } from "../support/machine.ts";
import { openableMinors } from "../support/simulated-host.ts";

const options = needsLab().skip === false ? needs("cc", "busybox") : needsLab();
const IMAGES_USED: readonly ImageName[] = ["debian", "musl", "static", "hostile"];

const dir = fs.mkdtempSync(path.join(os.tmpdir(), "sluice-generated-"));
let libcuda = "";
const laid = new Map<string, LaidHost>();

before(() => {
  if (options.skip === false) libcuda = makeTools(dir);
});
after(() => fs.rmSync(dir, { recursive: true }));

/** A host with its specs, made once for all engines. */
function lay(name: HostName | "openable", options: LayOptions = {}): LaidHost {
  const key = `${name} ${JSON.stringify(options)}`;
  let one = laid.get(key);
  if (one === undefined) {
    const host = name === "openable" ? openable(openableMinors(dir)) : HOSTS[name]();
    one = layHost(path.join(dir, String(laid.size)), host, libcuda, options);
    laid.set(key, one);
  }
  return one;
}

// --- What a container has

/** Drivers of character devices of this kernel, by major. */
const drivers = [
  ...(fs.readFileSync("/proc/devices", "utf8").split("Block devices:")[0] ?? "").matchAll(/^ *(\d+) (.+)$/gm),
].map(([, major, name = ""]) => ({ major: Number(major), name }));

/**
 * Whether opening a node of a major does no harm here: it is nobody's, or a GPU's. A driver's major is another number on
 * each machine, and what has it here might be a watchdog.
 */
function isHarmless({ major }: Numbers): boolean {
  return drivers.every((driver) => driver.major !== major || /^(?:nvidia|drm|kfd)/.test(driver.name));
}

interface Numbers {
  readonly major: number;
  readonly minor: number;
}

/** Of a node, by the host's tree. */
function numbersOf(host: Host, node: string): Numbers {
  const spec = host.tree[node];
  assert.ok(typeof spec === "object" && spec.major !== undefined && spec.minor !== undefined, `${host.name}: ${node}`);
  return { major: spec.major, minor: spec.minor };
}

/** Folders in which a container's nodes of GPUs and of what belongs to them lie. */
const NODES =
  "/dev/nvidia* /dev/nvidia-caps/* /dev/nvidia-caps-imex-channels/* /dev/dri/* /dev/kfd /dev/gdrdrv /dev/infiniband/*";

/** A script for the Debian image's shell. Opening only: a read of a stand-in could block. */
function look(opens: readonly string[], refused: readonly Numbers[], libraries: readonly string[]): string {
  return [
    `for n in ${NODES}; do if [ -c $n ]; then stat -c 'node %n %t:%T %a %u:%g' $n; fi; done`,
    ...(opens.length === 0 ? [] : [`probe open ${opens.join(" ")}`]),
    ...refused.map(({ major, minor }) => `probe mknod /dev/made ${major} ${minor}; rm -f /dev/made`),
    ...(libraries.length === 0 ? [] : [`/shared/load ${libraries.join(" ")}`]),
    "true",
  ].join("\n");
}

interface Expected {
  /** Paths of nodes, with their numbers where the host's tree has none. */
  readonly nodes: Readonly<Record<string, Numbers>>;
  /** Owner and mode of nodes where they are not `0:0` and 666. */
  readonly owners?: Readonly<Record<string, string>>;
  /** Nodes of others, which it must not open. */
  readonly refused?: readonly Numbers[];
  readonly libraries?: readonly string[];
  /** How many GPUs CUDA sees; absent where there is no CUDA. */
  readonly gpus?: number;
}

/**
 * Asserts that a container has what it must have, and nothing else.
 *
 * @param execute runs a command in it
 */
async function assertHas(what: string, execute: (...command: string[]) => Promise<Result>, expected: Expected) {
  const { nodes, owners = {}, libraries = [], gpus } = expected;
  const opens = Object.keys(nodes).filter((node) => isHarmless(nodes[node] as Numbers));
  const refused = (expected.refused ?? []).filter(isHarmless);
  const r = await execute("sh", "-c", look(opens, refused, libraries));
  const context = `${what}:\n${r.out}${r.err}`;
  assert.equal(r.code, 0, context);
  const lines = r.out.trim().split("\n");

  const seen = lines.filter((line) => line.startsWith("node ")).map((line) => line.slice("node ".length));
  const wanted = Object.entries(nodes).map(([node, { major, minor }]) => {
    const owner = owners[node] ?? "666 0:0";
    return `${node} ${major.toString(16)}:${minor.toString(16)} ${owner}`;
  });
  assert.deepEqual(seen.sort(), wanted.sort(), context);
  const opened = lines.filter((line) => opens.some((node) => line.startsWith(`${node}: `)));
  assert.equal(opened.length, opens.length, context);
  for (const line of opened) assert.match(line, /: (?:opened|ENXIO|ENODEV)$/, context);

  const made = lines.filter((line) => line.startsWith("/dev/made: "));
  assert.equal(made.length, refused.length, context);
  for (const line of made) assert.match(line, /^\/dev\/made: (?:mknod: )?EPERM$/, context);

  const notLoaded = lines.filter((line) => line.includes(": not loaded: "));
  assert.deepEqual(notLoaded, [], context);
  const loaded = libraries.filter((library) => lines.some((line) => line.startsWith(`${library}: /`)));
  assert.deepEqual(loaded, libraries, context);
  if (gpus !== undefined) assert.ok(lines.includes(`libcuda.so.1: ${gpus} GPUs`), context);
}

const CONTROL = ["/dev/nvidiactl", "/dev/nvidia-uvm", "/dev/nvidia-uvm-tools", "/dev/nvidia-modeset"];

/** Names by which programs find the driver's libraries, but for those in folders below, which have loaders of their own. */
const SONAMES = LIBRARIES.filter(({ below }) => below === undefined).map((one) => libraryNames(one, DRIVER).soname);
const DEVELOPMENT = ["libcuda.so", "libnvidia-ml.so", "libnvcuvid.so", "libnvidia-encode.so"];
/** Debian's packages lack some of the libraries of NVIDIA's archive. */
const DEBIAN_SONAMES = ["libcuda.so.1", "libnvidia-ml.so.1", "libnvidia-encode.so.1", "libGLX_nvidia.so.0"];

interface Case {
  readonly host: HostName | "openable";
  readonly devices: readonly string[];
  /** Nodes that the container must have, beside the control nodes where it has a GPU of NVIDIA's. */
  readonly nodes: readonly string[];
  /** Numbers of those that the host's /dev lacks. */
  readonly numbers?: Readonly<Record<string, Numbers>>;
  readonly owners?: Readonly<Record<string, string>>;
  /** Nodes of the host that it must not have, nor open when it makes them. */
  readonly refused?: readonly string[];
  readonly libraries?: readonly string[];
  readonly gpus?: number;
  readonly lay?: LayOptions;
}

const OWN: LayOptions = { isOwn: true };

/** The n-th UUID of a GPU or MIG device in what nvidia-smi says. */
function uuid(host: Host, kind: "GPU" | "MIG", n: number): string {
  const found = [...(host.smi ?? "").matchAll(/\(UUID: ([^)]+)\)/g)].map(([, id = ""]) => id);
  return found.filter((id) => id.startsWith(kind))[n] ?? "none";
}

const drm = (card: number, render: number, video: number, renders: number) => ({
  nodes: [`/dev/dri/card${card}`, `/dev/dri/renderD${render}`],
  owners: { [`/dev/dri/card${card}`]: `666 0:${video}`, [`/dev/dri/renderD${render}`]: `666 0:${renders}` },
});

/** Written by hand from the facts of the hosts, not from what the generator says. */
function cases(): Case[] {
  const h100 = { host: "h100x8", libraries: [...SONAMES, ...DEVELOPMENT], gpus: 1 } as const;
  const mig = { host: "a100-mig-2", lay: OWN, libraries: ["libcuda.so.1"], gpus: 1 } as const;
  const [first, third] = [drm(1, 128, 44, 993), drm(3, 130, 44, 993)];
  const instance = (gi: number): string[] => [gi, gi + 1].map((cap) => `/dev/nvidia-caps/nvidia-cap${cap}`);
  const readable = (nodes: readonly string[]) => Object.fromEntries(nodes.map((node) => [node, "444 0:0"]));
  const all = [1, 2, 3, 4, 5, 6, 7, 8].map((card) => drm(card, 127 + card, 44, 993));
  return [
    // On the bus, the first GPU has minor 2, and the third has minor 0.
    {
      ...h100,
      devices: ["nvidia.com/gpu=0"],
      ...first,
      nodes: ["/dev/nvidia2", ...first.nodes],
      refused: ["/dev/nvidia0", "/dev/nvidia3", "/dev/dri/renderD129"],
    },
    {
      ...h100,
      devices: [`nvidia.com/gpu=${uuid(HOSTS.h100x8(), "GPU", 2)}`],
      ...third,
      nodes: ["/dev/nvidia0", ...third.nodes],
      refused: ["/dev/nvidia2"],
    },
    {
      ...h100,
      devices: ["nvidia.com/gpu=all"],
      nodes: [...[0, 1, 2, 3, 4, 5, 6, 7].map((minor) => `/dev/nvidia${minor}`), ...all.flatMap((one) => one.nodes)],
      owners: Object.assign({}, ...all.map((one) => one.owners)),
      gpus: 8,
    },
    // Capability minors: gi = 3 + 135 gpu + 9 gi. Device 0:1 is instance 8 of GPU 0.
    {
      ...mig,
      devices: ["nvidia.com/gpu=0:1"],
      nodes: ["/dev/nvidia0", ...instance(75)],
      refused: [...instance(66), "/dev/nvidia1"],
    },
    {
      ...mig,
      devices: [`nvidia.com/gpu=${uuid(HOSTS["a100-mig-2"](), "MIG", 1)}`],
      nodes: ["/dev/nvidia0", ...instance(75)],
      refused: [...instance(84), "/dev/nvidia1"],
    },
    {
      host: "a100-mig-2-half",
      devices: ["nvidia.com/gpu=1:0"],
      nodes: ["/dev/nvidia1", ...instance(147)],
      numbers: {
        "/dev/nvidia-caps/nvidia-cap147": { major: 239, minor: 147 },
        "/dev/nvidia-caps/nvidia-cap148": { major: 239, minor: 148 },
      },
      owners: readable(instance(147)),
      refused: ["/dev/nvidia0"],
      gpus: 1,
      libraries: ["libcuda.so.1"],
    },
    {
      host: "debian",
      devices: ["nvidia.com/gpu=0"],
      nodes: ["/dev/nvidia0", "/dev/dri/card0", "/dev/dri/renderD128"],
      owners: drm(0, 128, 44, 105).owners,
      libraries: DEBIAN_SONAMES,
      gpus: 1,
    },
    {
      host: "rhel",
      devices: ["nvidia.com/gpu=0"],
      nodes: ["/dev/nvidia0", "/dev/dri/card0", "/dev/dri/renderD128"],
      owners: drm(0, 128, 39, 105).owners,
      libraries: SONAMES,
      gpus: 1,
    },
    {
      host: "nixos",
      devices: ["nvidia.com/gpu=0"],
      nodes: ["/dev/nvidia0", "/dev/dri/card1", "/dev/dri/renderD128"],
      owners: drm(1, 128, 26, 303).owners,
      libraries: SONAMES,
      gpus: 1,
    },
    {
      host: "mi300",
      devices: ["amd.com/gpu=0"],
      nodes: ["/dev/kfd", "/dev/dri/card1", "/dev/dri/renderD128"],
      owners: { ...drm(1, 128, 44, 110).owners, "/dev/kfd": "666 0:110" },
      refused: ["/dev/dri/renderD129"],
    },
    {
      host: "arc",
      devices: ["intel.com/gpu=0"],
      nodes: ["/dev/dri/card1", "/dev/dri/renderD129"],
      owners: drm(1, 129, 39, 105).owners,
      refused: ["/dev/dri/renderD128"],
    },
  ];
}

function expectedOf({ host: name, lay: options, devices, nodes, numbers, refused = [], ...rest }: Case): Expected {
  const { host } = lay(name, options);
  const isNvidia = devices.some((device) => device.startsWith("nvidia.com/"));
  const control = isNvidia ? CONTROL.filter((node) => host.tree[node] !== undefined) : [];
  const all = [...nodes, ...control].map((node) => [node, numbers?.[node] ?? numbersOf(host, node)]);
  return { ...rest, nodes: Object.fromEntries(all), refused: refused.map((node) => numbersOf(host, node)) };
}

/**
 * What Sluice as the runtime gives has the mode of the machine's node; engines' own CDI gives 666 where the spec says none.
 */
function withModes({ host, lay: options }: Case, expected: Expected): Expected {
  const { tree } = lay(host, options).host;
  const owners = Object.keys(expected.nodes).map((node) => {
    const spec = tree[node];
    const { mode = 0o666, gid = 0 } = typeof spec === "object" ? spec : {};
    return [node, `${mode.toString(8)} 0:${gid}`];
  });
  return { ...expected, owners: Object.fromEntries(owners) };
}

/** Starts a container of the Debian image, by the engine's own CDI if nothing else is said, and asserts what it has. */
async function check(native: Native, one: Case, more: Partial<Asked> = { devices: one.devices }): Promise<void> {
  const asked: Asked = { image: "debian", ...more };
  const what = `${native.name}, ${one.host}, ${JSON.stringify(asked)}`;
  const expected = expectedOf(one);
  const execute = (...command: string[]) => native.run(asked, ...command);
  await assertHas(what, execute, asked.isSluices === true ? withModes(one, expected) : expected);
}

/** A container with every device of every kind of a host. */
async function checkAll(native: Native, { host, specs }: LaidHost): Promise<void> {
  const devices = specs.flatMap((spec) => spec.devices.map((device) => `${spec.kind}=${device.name}`));
  const given = specs.flatMap((spec) =>
    [spec.containerEdits, ...spec.devices.map((device) => device.containerEdits)].flatMap((e) => e?.deviceNodes ?? []),
  );
  const nodes = given.map((node) => {
    const { major, minor = 0 } = node;
    return [node.path, major === undefined ? numbersOf(host, node.path) : { major, minor }] as const;
  });
  const owners = given.map((node) => {
    const mode = (node.fileMode ?? 0o666).toString(8);
    return [node.path, `${mode} ${node.uid ?? 0}:${node.gid ?? 0}`] as const;
  });
  const execute = (...command: string[]) => native.run({ image: "debian", devices }, ...command);
  await assertHas(`${native.name}, ${host.name}, all`, execute, {
    nodes: Object.fromEntries(nodes),
    owners: Object.fromEntries(owners),
  });
}

// --- The engines

/** Hosts without devices that Sluice can give, or of which it must refuse to. */
const WITHOUT_SPECS: readonly HostName[] = ["half-upgraded", "no-driver", "wsl", "tegra", "empty"];
const WITH_SPECS = (Object.keys(HOSTS) as HostName[]).filter((name) => !WITHOUT_SPECS.includes(name));

type Start = (t: TestContext) => Native | Promise<Native>;
const ENGINES: Readonly<Record<string, Start>> = {
  "Docker 28": (t) => docker(t, "28", IMAGES_USED),
  "Docker 26": (t) => docker(t, "26", IMAGES_USED),
  "containerd 2.1": (t) => containerd(t, "2.1", IMAGES_USED),
  "containerd 1.7": (t) => containerd(t, "1.7", IMAGES_USED),
  "Podman 5": (t) => podman(t, IMAGES_USED),
};

/** The machine of an engine without the GPUs that every machine of the lab has, and with what containers run. */
async function started(t: TestContext, start: Start): Promise<Native> {
  const native = await start(t);
  const { machine } = native;
  for (const file of ["etc/cdi/nvidia.json", "dev/nvidia0", "dev/nvidia1", "dev/nvidiactl"]) {
    fs.rmSync(path.join(machine.dir, file));
  }
  fs.copyFileSync(path.join(dir, "load"), path.join(machine.shared, "load"));
  // Here the specs are tested, and no kubelet allocates their devices.
  fs.appendFileSync(path.join(machine.dir, "etc/sluice/config.toml"), '[policy]\ntrust = "engine"\n');
  return native;
}

/** A part of a test, on the machine of an engine that is made to be a host's for its time. */
async function on(
  t: TestContext,
  native: Native,
  host: LaidHost,
  name: string,
  act: () => Promise<void>,
): Promise<void> {
  await t.test(name, async () => {
    const uninstall = install(native.machine, host);
    try {
      await act();
    } finally {
      uninstall();
    }
  });
}

for (const [engine, start] of Object.entries(ENGINES)) {
  test(`${engine}: with the specs that Sluice generates, containers have what they ask for`, options, async (t) => {
    const native = await started(t, start);
    const seen = (way: string) => record("native CDI", native.name, way, "works");

    for (const name of WITH_SPECS) {
      const host = lay(name);
      await on(t, native, host, `${name}: every device of every kind`, async () => {
        await checkAll(native, host);
        seen(`${name}: every device of every kind at once`);
      });
    }

    for (const one of cases()) {
      const way = `${one.host}: ${one.devices.join(", ").replace(/(GPU|MIG)-[0-9a-f-]+/, "$1-UUID")}`;
      await on(t, native, lay(one.host, one.lay), way, async () => {
        await check(native, one);
        seen(way);
      });
    }

    if (native.name.startsWith("containerd")) {
      const way = "annotation `cdi.k8s.io/NAME` of the container";
      await on(t, native, lay("h100x8"), way, async () => {
        const [gpu] = cases() as [Case];
        await check(native, gpu, { annotations: { "cdi.k8s.io/gpu": gpu.devices.join(",") } });
        seen(way);
      });
    }

    const [one, third] = cases() as [Case, Case];
    const host = lay(one.host);
    const device = one.devices[0] as string;
    const nodes = Object.keys(expectedOf(one).nodes).filter((node) => isHarmless(numbersOf(host.host, node)));

    await on(t, native, host, "the loader's cache has the libraries, also where the root is read-only", async () => {
      for (const readOnly of [false, true]) {
        const r = await native.run({ image: "debian", devices: [device], readOnly }, "ldconfig", "-p");
        for (const soname of SONAMES)
          assert.ok(r.out.includes(`\t${soname} (libc6,x86-64) => `), `${soname}\n${r.out}`);
        await check(native, one, { devices: [device], readOnly });
      }
      seen("a read-only container, and the loader's cache");
    });

    await on(t, native, host, "images without glibc start, and have the nodes", async () => {
      for (const [image, probe] of [
        ["musl", "/usr/bin/probe"],
        ["static", "/probe"],
      ] as const) {
        const r = await native.run({ image, devices: [device] }, probe, "open", ...nodes);
        assert.deepEqual(
          r.out.match(/: (?:opened|ENXIO|ENODEV)$/gm)?.length,
          nodes.length,
          `${image}\n${r.out}${r.err}`,
        );
      }
      seen("an image with musl, and one without any library");
    });

    await on(t, native, host, "an image with traps gets nothing of the machine's changed", async () => {
      const state = "cat /etc/passwd; stat -c '%n %i %z %s' /etc/ld.so.cache /etc/shadow; ls /var/lib /run /tmp";
      const before = native.machine.must("sh", "-c", state);
      // runc may refuse to mount over one of them.
      const started = () => native.run({ image: "hostile", devices: [device] }, "/bin/sh", "-c", "cat /tmp/was-run");
      const said = await started().then((r) => r.out + r.err, String);
      assert.match(
        said,
        /can't open '\/tmp\/was-run'|rootfs at "\/usr\/bin\/nvidia-/,
        "no program of the image was run",
      );
      assert.equal(native.machine.must("sh", "-c", state), before);
      seen("an image with traps: the machine stays as it was");
    });

    await on(t, native, host, "what an image has in its environment does not reach the hook", async () => {
      await check(native, one, { devices: [device], env: { LD_PRELOAD: "/evil.so", LD_LIBRARY_PATH: "/evil" } });
      seen("`LD_PRELOAD` in the container's environment");
    });

    await on(t, native, host, "through Sluice as the runtime it has the same", async () => {
      await check(native, one, { isSluices: true, annotations: { "gpu.sluice.dev": device } });
      seen("Sluice as the runtime, in place of the engine's CDI");
    });

    await on(t, native, host, "two at once have each its own, and after a restart too", async () => {
      const other: Case = { ...third, devices: ["nvidia.com/gpu=2"] };
      const wait = ["sh", "-c", "trap 'exit 0' TERM; while :; do sleep 0.1; done"];
      const running = [one, other].map(async (each) => {
        const made = await native.start({ image: "debian", devices: each.devices }, ...wait);
        return { each, made };
      });
      for (const { each, made } of await Promise.all(running)) {
        try {
          await assertHas(`${native.name}, beside another`, made.exec, expectedOf(each));
          if (made.restart === undefined) continue;
          await made.restart();
          await assertHas(`${native.name}, restarted`, made.exec, expectedOf(each));
        } finally {
          await made.remove();
        }
      }
      seen(native.name.startsWith("containerd") ? "two containers at once" : "two containers at once, and restarted");
    });

    await on(t, native, lay("h100x8", { hook: ["--no-hook"] }), "without a hook", async () => {
      await check(native, one);
      seen("a spec made with `--no-hook`");
    });

    await on(t, native, lay("openable"), "a node of its own opens, and another's does not", async () => {
      const [own = 0, others = 0] = openableMinors(dir);
      const { specs } = lay("openable");
      assert.deepEqual(specs.map((spec) => spec.kind).includes("nvidia.com/gpu"), true);
      const script = `probe open /dev/nvidia${own}; probe mknod /dev/made 10 ${others}; true`;
      const r = await native.run({ image: "debian", devices: ["nvidia.com/gpu=0"] }, "sh", "-c", script);
      assert.equal(r.out, `/dev/nvidia${own}: opened\n/dev/made: EPERM\n`, r.err);
      seen("a node with a driver behind it opens, another GPU's does not");
    });
  });
}

test(
  "a machine that writes its own specs: they are right for engines and for Sluice, and stay so",
  options,
  async (t) => {
    const native = await started(t, ENGINES["Docker 28"] as Start);
    const { machine } = native;
    const laid = lay("a100-mig-2", OWN);
    install(machine, laid);
    const kernel = showKernel(machine, laid);
    for (const file of fs.readdirSync(path.join(machine.dir, "run/cdi")))
      fs.rmSync(path.join(machine.dir, "run/cdi", file));
    machine.must("sluice", "cdi", "generate");
    const [numbered, named] = cases().filter((one) => one.host === "a100-mig-2") as [Case, Case];
    const byAnnotation = (device: string): Partial<Asked> => {
      return { isSluices: true, annotations: { "gpu.sluice.dev": device } };
    };

    await t.test("by the engine's own CDI and by Sluice a container has the same", async () => {
      for (const one of [numbered, named]) {
        await check(native, one);
        await check(native, one, byAnnotation(one.devices[0] as string));
      }
    });

    await t.test("by Sluice it has those of the driver's files alone whose capabilities it asks for", async () => {
      const env = {
        NVIDIA_VISIBLE_DEVICES: named.devices[0]?.replace(/^.*=/, "") ?? "",
        NVIDIA_DRIVER_CAPABILITIES: "compute",
      };
      const asked: Asked = { image: "debian", isSluices: true, env };
      const script =
        "/shared/load libcuda.so.1; /shared/load libGLX_nvidia.so.0 libnvidia-ml.so.1; ls /usr/bin/nvidia-smi";
      const r = await native.run(asked, "sh", "-c", script);
      assert.match(r.out, /^libcuda\.so\.1: 1 GPUs$/m, r.err);
      assert.match(r.out, /^libGLX_nvidia\.so\.0: not loaded: .*$/m);
      assert.match(r.out, /^libnvidia-ml\.so\.1: not loaded: .*$/m);
      assert.match(r.err, /nvidia-smi/);
    });

    await t.test("when MIG has been cut anew, Sluice gives what is there now, and writes the spec anew", async () => {
      // Instance 8 was device 0:1; that is instance 9 now, and there is no 0:6 any more.
      fs.rmSync(path.join(kernel, "proc/driver/nvidia/capabilities/gpu0/mig/gi8"), { recursive: true });
      const caps = ["/dev/nvidia-caps/nvidia-cap84", "/dev/nvidia-caps/nvidia-cap85"];
      const now: Case = { ...numbered, nodes: ["/dev/nvidia0", ...caps], refused: ["/dev/nvidia-caps/nvidia-cap75"] };
      await check(native, now, byAnnotation("nvidia.com/gpu=0:1"));
      await check(native, now);
      const r = await native.run({ image: "debian", ...byAnnotation("nvidia.com/gpu=0:6") }, "true");
      assert.notEqual(r.code, 0);
      assert.match(r.err, /nvidia\.com\/gpu=0:6/);
    });

    await t.test("a GPU that falls off the bus takes away its own devices, and no others", async () => {
      const config = path.join(kernel, "sys/bus/pci/devices/0000:0f:00.0/config");
      fs.writeFileSync(config, Buffer.alloc(fs.statSync(config).size, 0xff));
      const gone = await native.run({ image: "debian", ...byAnnotation("nvidia.com/gpu=1:0") }, "true");
      assert.notEqual(gone.code, 0);
      assert.match(gone.err, /nvidia\.com\/gpu=1:0/);
      const r = await native.run(
        { image: "debian", ...byAnnotation("nvidia.com/gpu=0:0") },
        "probe",
        "open",
        "/dev/nvidia0",
      );
      assert.match(r.out, /^\/dev\/nvidia0: (?:opened|ENXIO|ENODEV)$/m, r.err);
    });

    await t.test("a driver that was upgraded beneath the loaded one is named", async () => {
      const folder = path.join(machine.dir, "usr/lib/x86_64-linux-gnu");
      fs.renameSync(path.join(folder, `libcuda.so.${DRIVER}`), path.join(folder, "libcuda.so.580.82.07"));
      const r = await native.run({ image: "debian", ...byAnnotation("nvidia.com/gpu=0:0") }, "true");
      assert.notEqual(r.code, 0);
      assert.match(r.err, /580\.65\.06.*580\.82\.07/);
    });
  },
);
