/**
 * `make bench`: what Sluice costs a container's start, each against its floor in the same run, alternating.
 *
 *   node --import tsx test/bench/bench.ts [--quick] [--output FILE]
 *
 * Prints tables and writes all numbers to build/bench.json. `--quick` takes a few rounds of each: enough to see that
 * everything works, and for what does not depend on time (instructions, memory, size). What a bound is, and whether it
 * is kept, stands at the end; a bound that is not kept is not a failure of the run.
 */

import { execFileSync, spawnSync } from "node:child_process";
import * as fs from "node:fs";
import * as os from "node:os";
import * as path from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import type { Spec } from "../../src/cdi/spec.ts";
import { STAMP } from "../../src/plan/inject.ts";
import { makeBundle, ROOT, SLUICE } from "../support/simulated-host.ts";
import * as native from "./native.ts";
import * as scenes from "./scenes.ts";
import { buildProgram, type Case, difference, ENVIRONMENT, type Series, summarize, Timer, total } from "./timer.ts";

const ISOLATED = "--isolated";
const { values: options } = parseArgs({
  options: { quick: { type: "boolean", default: false }, output: { type: "string" }, isolated: { type: "boolean" } },
});
const quick = options.quick;
const output = options.output ?? path.join(ROOT, "build/bench.json");

/** Milliseconds, but for `peakKiB` and `instructions`. */
interface Row {
  what: string;
  min?: number;
  median?: number;
  p90?: number;
  /** Above the section's floor, as the median of the rounds' differences. */
  over?: number;
  /** The same of processor time, which other work on the machine changes least. */
  cpuOver?: number;
  /** To the floor's median. */
  ratio?: number;
  peakKiB?: number;
  instructions?: number;
}

interface Section {
  title: string;
  /** How it is measured; what the floor is. */
  how: string;
  rows: Row[];
}

interface Bound {
  what: string;
  value: number;
  limit: number;
  unit: string;
  /** Whether it is the same on every machine and at every load. */
  exact: boolean;
}

// A /run/sluice of our own, and bundles in memory, where containerd and Docker have theirs: a disk is noise.
if (!options.isolated) {
  if (process.geteuid?.() !== 0) {
    process.stderr.write("bench: starting containers needs root; run: sudo make bench\n");
    process.exit(1);
  }
  const script = fileURLToPath(import.meta.url);
  const command = [process.execPath, ...process.execArgv, script, ISOLATED, ...process.argv.slice(2)];
  const { status, error } = spawnSync("unshare", ["--mount", ...command], { stdio: "inherit" });
  if (error !== undefined) throw error;
  process.exit(status ?? 1);
}
// A short path, since the driver's files stand in the specs and their paths would be longer than on a real host.
const dir = "/mnt";
for (const place of ["/run/sluice", dir]) {
  fs.mkdirSync(place, { recursive: true });
  execFileSync("mount", ["-t", "tmpfs", "-o", "mode=755", "sluice-bench", place]);
}
const timer = new Timer(buildProgram("timer"), dir);
/** A copy, so that all cases run the same program, whatever is built meanwhile. */
const SUBJECT = path.join(dir, "sluice");
const RUNTIME = path.join(dir, "sluice-runtime");
fs.copyFileSync(SLUICE, SUBJECT);
fs.symlinkSync("sluice", RUNTIME);
/** The index of the specs, and the JSON of those that are YAML, as the measured programs see them. */
const SPEC_CACHE = "/run/sluice/cdi";

function row(what: string, series: Series, floor?: Series, memory = false): Row {
  const { min, median, p90 } = summarize(series.rounds);
  const compared = floor && {
    over: difference(series.rounds, floor.rounds),
    cpuOver: difference(series.cpu, floor.cpu),
    ratio: median / summarize(floor.rounds).median,
  };
  return { what, min, median, p90, ...compared, ...(memory ? { peakKiB: series.peakKiB } : {}) };
}

function at<T>(map: Map<string, T>, key: string): T {
  const value = map.get(key);
  if (value === undefined) throw new Error(`nothing was measured for ${key}`);
  return value;
}

/** Runs a command that is not measured, in the environment of those that are. */
function run(env: Record<string, string>, ...command: string[]): void {
  const [program = "", ...args] = command;
  execFileSync(program, args, {
    env: { ...ENVIRONMENT, ...env },
    stdio: ["ignore", "ignore", "inherit"],
    timeout: 60_000,
  });
}

/** Files that have just changed are not cached: the benchmark waits until those that it wrote have aged. */
function settle(): void {
  spawnSync("sleep", ["0.2"]);
}

// --- What it is measured on

const driver = path.join(dir, "driver");
scenes.makeDriver(driver);
/** As many devices as make it no smaller than the 19 kB that the bound on instructions is for. */
const DEVICES = 27;
const driverSpec = JSON.stringify(scenes.driverSpec(driver, DEVICES, true));
const gpu0 = scenes.makeConfig(path.join(dir, "config-gpu"), `${scenes.GPU}=0`);
const plain = scenes.makeConfig(path.join(dir, "config-plain"));
const wrapper = scenes.makeScene(path.join(dir, "wrapper"), { "nvidia.json": driverSpec }, "/bin/true");
const configBytes = fs.statSync(path.join(gpu0, "config.json.original")).size;
/** Of what is no container, since /bin/true makes it. */
const ID = "bench";
const CONTAINER = `sluice-bench-${process.pid}`;
const RUNNING = `${CONTAINER}-running`;

function create(bundle: string): string[] {
  return ["create", "--bundle", bundle, ID];
}

/** One create in front of /bin/true, again and again. */
function creates(name: string, scene: scenes.Scene, bundle: string, times: number): Case {
  const once = [scenes.restore(bundle), ["time", "create", RUNTIME, ...create(bundle)]];
  return { name, env: scene.env, steps: Array.from({ length: times }, () => once).flat() };
}

// --- A container

/** Create, start and delete of a container that ends by itself. */
function lifeCycle(name: string, runtime: string, env: Record<string, string>, bundle: string): Case {
  return {
    name,
    env,
    steps: [
      scenes.restore(bundle),
      ["time", "create", runtime, "create", "--bundle", bundle, CONTAINER],
      ["time", "start", runtime, "start", CONTAINER],
      // runc looks only every 100 ms whether a container that it is to delete has ended.
      ["reap"],
      ["time", "delete", runtime, "delete", CONTAINER],
    ],
  };
}

function containers(): { sections: Section[]; bounds: Bound[] } {
  const spec = JSON.stringify(scenes.driverSpec(driver, 1, false));
  const scene = scenes.makeScene(path.join(dir, "containers"), { "nvidia.json": spec });
  const bundle = (name: string, asks: boolean) => {
    const annotations: Record<string, string> = asks ? { "gpu.sluice.dev": `${scenes.GPU}=0` } : {};
    return makeBundle(path.join(dir, name), { script: "true", annotations });
  };
  const [none, byHand, asking, nothing] = [
    bundle("none", false),
    bundle("by-hand", true),
    bundle("asking", true),
    bundle("nothing", false),
  ] as const;

  // Sluice's own edits, as if an engine had written them.
  run(scene.env, SUBJECT, "apply", "--bundle", byHand);
  const file = path.join(byHand, "config.json");
  const config = JSON.parse(fs.readFileSync(file, "utf8"));
  const files = config.mounts.filter((mount: { source: string }) => mount.source.startsWith(`${driver}/`)).length;
  if (files !== 48) throw new Error(`the container by hand has ${files} of the driver's 48 files`);
  delete config.annotations[STAMP];
  fs.writeFileSync(file, JSON.stringify(config, null, 2));
  for (const one of [none, byHand, asking, nothing]) scenes.keepConfig(one);
  settle();

  const measured = timer.measure(quick ? 2 : 150, [
    lifeCycle("plain", "runc", scene.env, none),
    lifeCycle("floor", "runc", scene.env, byHand),
    lifeCycle("sluice", RUNTIME, scene.env, asking),
    lifeCycle("nothing", RUNTIME, scene.env, nothing),
  ]);
  const steps = new Map([...measured].map(([name, all]) => [name, total(all.values())]));
  const [runc, floor, sluice, untouched] = ["plain", "floor", "sluice", "nothing"].map((n) => at(steps, n)) as [
    Series,
    Series,
    Series,
    Series,
  ];
  const step = (name: string, of: string) => at(at(measured, name), of);
  const whole = row("through Sluice", sluice, floor);
  return {
    sections: [
      {
        title: "A container with 48 files and 5 nodes: create + start + delete",
        how: "floor: runc, with the same edits already in config.json",
        rows: [row("runc, without the edits", runc), row("runc, edits by hand", floor), whole],
      },
      ...["create", "start", "delete"].map((of) => ({
        title: `Of that, ${of}`,
        how: "",
        rows: [
          row("runc, edits by hand", step("floor", of)),
          row("through Sluice", step("sluice", of), step("floor", of)),
        ],
      })),
      {
        title: "A container that asks for nothing: create + start + delete",
        how: "floor: runc",
        rows: [row("runc", runc), row("through Sluice", untouched, runc)],
      },
    ],
    bounds: [
      {
        what: "a container through Sluice over the floor",
        value: whole.over ?? Number.NaN,
        limit: 4,
        unit: "ms",
        exact: false,
      },
    ],
  };
}

// --- The wrapper alone

function alone(): { sections: Section[]; bounds: Bound[] } {
  const times = 10;
  const measured = timer.measure(quick ? 2 : 60, [
    {
      name: "true",
      steps: Array.from({ length: times }, () => [
        scenes.restore(gpu0),
        ["time", "create", "/bin/true", ...create(gpu0)],
      ]).flat(),
    },
    creates("injected", wrapper, gpu0, times),
    creates("nothing", wrapper, plain, times),
    {
      name: "passed",
      env: wrapper.env,
      steps: Array.from({ length: times }, () => ["time", "create", RUNTIME, "state", ID]),
    },
  ]);
  const floor = at(at(measured, "true"), "create");
  const of = (name: string) => at(at(measured, name), "create");
  return {
    sections: [
      {
        title: "Sluice alone, in front of /bin/true",
        how: `config.json of ${kB(configBytes)}, one spec of ${kB(driverSpec.length)} with ${DEVICES} devices; floor: /bin/true`,
        rows: [
          row("/bin/true", floor, undefined, true),
          row("create, a device", of("injected"), floor, true),
          row("create, asks for nothing", of("nothing"), floor, true),
          row("state (passed on)", of("passed"), floor, true),
        ],
      },
    ],
    bounds: [
      {
        what: "peak memory of the injection",
        value: (of("injected").peakKiB * 1024) / 1e6,
        limit: 4,
        unit: "MB",
        exact: true,
      },
    ],
  };
}

// --- Passing on

function passing(): { sections: Section[]; bounds: Bound[] } {
  const bundle = makeBundle(path.join(dir, "running"), { script: "exec sleep 1000" });
  run({}, "runc", "run", "--detach", "--bundle", bundle, RUNNING);
  try {
    const scene = scenes.makeScene(path.join(dir, "passing"), {});
    settle();
    const times = 5;
    const state = (name: string, runtime: string): Case => {
      return {
        name,
        env: scene.env,
        steps: Array.from({ length: times }, () => ["time", "state", runtime, "state", RUNNING]),
      };
    };
    const measured = timer.measure(quick ? 2 : 100, [state("runc", "runc"), state("sluice", RUNTIME)]);
    const floor = at(at(measured, "runc"), "state");
    const through = row("through Sluice", at(at(measured, "sluice"), "state"), floor);
    return {
      sections: [{ title: "state of a running container", how: "floor: runc", rows: [row("runc", floor), through] }],
      bounds: [
        { what: "pass-through over runc", value: through.over ?? Number.NaN, limit: 1.5, unit: "ms", exact: false },
      ],
    };
  } finally {
    run({}, "runc", "delete", "--force", RUNNING);
  }
}

// --- The engines' own CDI

/** Milliseconds: what the hook of our spec may cost, and a spec's generation. */
const NATIVE_LIMIT = 5;
const GENERATE_LIMIT = 50;

function ownCdi(): { sections: Section[]; bounds: Bound[] } {
  const [tree, cdi] = [path.join(dir, "host"), path.join(dir, "generated")];
  native.makeGpuTree(tree);
  fs.mkdirSync(cdi);
  const generate = [SUBJECT, "cdi", "generate", "--root", tree, "--output", cdi, "--hook", SUBJECT];
  run({}, ...generate);
  native.installLibraries(tree);
  const spec = JSON.parse(fs.readFileSync(path.join(cdi, "sluice-nvidia.com-gpu.json"), "utf8")) as Spec;
  const [libraries, files] = [native.librariesOf(spec), spec.containerEdits?.mounts?.length ?? 0];
  if (libraries < native.LIBRARIES) throw new Error(`the spec has ${libraries} libraries`);
  const bundle = (name: string, part: native.Part) => native.makeNativeBundle(path.join(dir, name), tree, spec, part);
  const [none, mounts, all] = [
    bundle("own-none", "nothing"),
    bundle("own-mounts", "mounts and nodes"),
    bundle("own-all", "all"),
  ];
  run({}, "runc", "run", "--bundle", all, CONTAINER);
  if (!fs.lstatSync(path.join(all, "rootfs/usr/lib/x86_64-linux-gnu/libcuda.so.1")).isSymbolicLink()) {
    throw new Error("the hook has made no link");
  }
  const fresh = (name: string, of: string): Case => {
    const { steps, ...rest } = lifeCycle(name, "runc", {}, of);
    return { ...rest, steps: [native.freshRoot(of), ...steps] };
  };
  const measured = timer.measure(quick ? 2 : 100, [fresh("none", none), fresh("mounts", mounts), fresh("all", all)]);
  const whole = (name: string) => total(at(measured, name).values());
  const hooked = row("our spec: the same and its hook", whole("all"), whole("mounts"));
  const times = 5;
  const generated = timer.measure(quick ? 2 : 20, [
    {
      name: "generate",
      steps: Array.from({ length: times }, () => [
        ["empty", cdi],
        ["time", "generate", ...generate],
      ]).flat(),
    },
  ]);
  const generation = row("sluice cdi generate", at(at(generated, "generate"), "generate"), undefined, true);
  return {
    sections: [
      {
        title: `The engines' own CDI, 8 GPUs, ${files} files of which ${libraries} are libraries: create + start + delete`,
        how: "runc, with the edits in config.json as an engine writes them; floor: mounts and nodes without the hook",
        rows: [
          row("without the edits", whole("none"), whole("mounts")),
          row("mounts and nodes", whole("mounts")),
          hooked,
        ],
      },
      { title: "Writing that spec", how: "from files in memory", rows: [generation] },
    ],
    bounds: [
      {
        what: "our spec over its bare mounts",
        value: hooked.over ?? Number.NaN,
        limit: NATIVE_LIMIT,
        unit: "ms",
        exact: false,
      },
      {
        what: "generation of the spec",
        value: generation.median ?? Number.NaN,
        limit: GENERATE_LIMIT,
        unit: "ms",
        exact: false,
      },
    ],
  };
}

// --- Growth

const FILE_COUNTS = [1, 10, 100, 500];
const DEVICE_COUNTS = [1, 16, 64, 128];

interface Grown {
  name: string;
  scene: scenes.Scene;
  bundle: string;
}

/** Claims: one device to a file. The container asks for one in the middle. */
const claims: Grown[] = FILE_COUNTS.map((count) => {
  const names = Array.from({ length: count }, (_, i) => scenes.claimName(i));
  const specs = names.map((name) => [
    `k8s.gpu.nvidia.com-claim_${name}.json`,
    JSON.stringify(scenes.claimSpec(driver, name)),
  ]);
  return {
    name: `${count} spec file${count === 1 ? "" : "s"}`,
    scene: scenes.makeScene(path.join(dir, `files-${count}`), Object.fromEntries(specs), "/bin/true"),
    bundle: scenes.makeConfig(
      path.join(dir, `config-files-${count}`),
      `${scenes.CLAIM}=${scenes.claimName(count >> 1)}`,
    ),
  };
});
const sized: Grown[] = DEVICE_COUNTS.map((count) => {
  const text = JSON.stringify(scenes.driverSpec(driver, count, true));
  return {
    name: `${count} device${count === 1 ? "" : "s"} in the spec (${kB(text.length)})`,
    scene: scenes.makeScene(path.join(dir, `devices-${count}`), { "nvidia.json": text }, "/bin/true"),
    bundle: gpu0,
  };
});
const yamlSpec = scenes.yaml(scenes.driverSpec(driver, 16, true));
const asYaml: Grown = {
  name: `YAML, 16 devices (${kB(yamlSpec.length)})`,
  scene: scenes.makeScene(path.join(dir, "yaml"), { "nvidia.yaml": yamlSpec }, "/bin/true"),
  bundle: gpu0,
};

/** A claim that is new to 500 others, as the container for which it was made starts. */
const claimed = {
  name: scenes.claimName(1000),
  file: path.join(dir, "new-claim.json"),
  bundle: scenes.makeConfig(path.join(dir, "config-new"), `${scenes.CLAIM}=${scenes.claimName(1000)}`),
};
fs.writeFileSync(claimed.file, JSON.stringify(scenes.claimSpec(driver, claimed.name)));

/** Each case starts with what the others left in the caches: a run that is not measured fills them anew. */
function warm({ name, scene, bundle }: Grown): Case {
  const measured = creates(name, scene, bundle, 4);
  return { ...measured, steps: [scenes.restore(bundle), ["do", RUNTIME, ...create(bundle)], ...measured.steps] };
}

/** As on the first start after a boot. */
function cold({ name, scene, bundle }: Grown): Case {
  const measured = creates(`${name}, first start`, scene, bundle, 1);
  return { ...measured, steps: [["empty", SPEC_CACHE], ...measured.steps] };
}

function added({ scene, bundle }: Grown, name: string, pause: string[][]): Case {
  const there = path.join(scene.cdi, "k8s.gpu.nvidia.com-claim_new.json");
  return {
    name,
    env: scene.env,
    steps: [
      scenes.restore(bundle),
      ["do", RUNTIME, ...create(bundle)],
      scenes.restore(claimed.bundle),
      ["copy", claimed.file, there],
      ...pause,
      ["time", "create", RUNTIME, ...create(claimed.bundle)],
      ["remove", there],
    ],
  };
}

function growth(): { sections: Section[]; bounds: Bound[] } {
  settle();
  const many = claims.at(-1) as Grown;
  const all = [...claims, ...sized, asYaml];
  const justNow = `${many.name} and one written just now`;
  const lately = `${many.name} and one written 0.15 s ago`;
  const measured = timer.measure(quick ? 1 : 40, [
    ...all.map(warm),
    ...[...claims, asYaml].map(cold),
    added(many, justNow, []),
    added(many, lately, [["sleep", "150"]]),
  ]);
  const of = (name: string) => at(at(measured, name), "create");
  const firstOf = (one: Grown) => of(`${one.name}, first start`);
  const one = claims[0] as Grown;
  const lone = sized[0] as Grown;
  const json = sized[1] as Grown;
  const whole = row(many.name, of(many.name), of(one.name), true);
  return {
    sections: [
      {
        title: "Spec files, one device each",
        how: "create in front of /bin/true; over one file",
        rows: [
          ...claims.map((grown) => row(grown.name, of(grown.name), of(one.name), true)),
          // Measured once a round: against the first of the four of the other.
          ...[justNow, lately].map((name) => row(name, of(name), of(one.name), true)),
        ],
      },
      {
        title: "The same without an index, as on the first start after a boot",
        how: "over one file, with an index",
        rows: claims.map((grown) => row(grown.name, firstOf(grown), of(one.name), true)),
      },
      {
        title: "Devices in one spec file",
        how: "create in front of /bin/true; over one device",
        rows: sized.map((grown) => row(grown.name, of(grown.name), of(lone.name), true)),
      },
      {
        title: "A YAML spec",
        how: "over the same as JSON",
        rows: [
          row(`JSON, ${json.name}`, of(json.name), undefined, true),
          row(`${asYaml.name}, later start`, of(asYaml.name), of(json.name), true),
          row(`${asYaml.name}, first start`, firstOf(asYaml), of(json.name), true),
        ],
      },
    ],
    bounds: [{ what: "500 spec files over one", value: whole.over ?? Number.NaN, limit: 6, unit: "ms", exact: false }],
  };
}

// --- Instructions

/** Basic blocks after which callgrind writes down its count: some 10,000 instructions. */
const BLOCKS = 2000;

/**
 * Of `create`, until it becomes the low-level runtime. With that callgrind's count is lost, so it writes it down again
 * and again: the last dump is at most 0.02 million short.
 */
function instructionsOf(env: Record<string, string>, bundle: string, ...args: string[]): number {
  const original = path.join(bundle, "config.json.original");
  const config = path.join(bundle, "config.json");
  const counts = path.join(dir, "callgrind");
  fs.mkdirSync(counts);
  const valgrind = ["valgrind", "-q", "--tool=callgrind", `--dump-every-bb=${BLOCKS}`];
  // Twice to fill the caches: what the first start of all has to make, the second finds.
  for (const prefix of [[], [], [...valgrind, `--callgrind-out-file=${counts}/out`]]) {
    fs.copyFileSync(original, config);
    run(env, ...prefix, RUNTIME, ...args);
  }
  const parts = fs.readdirSync(counts).map((name) => fs.readFileSync(path.join(counts, name), "utf8"));
  fs.rmSync(counts, { recursive: true });
  const count = parts.reduce((sum, text) => sum + Number(/^totals: (\d+)/m.exec(text)?.[1] ?? 0), 0);
  if (!(count > 0)) throw new Error("callgrind counted nothing");
  return count;
}

function instructions(): { sections: Section[]; bounds: Bound[] } {
  settle();
  const count = (what: string, env: Record<string, string>, bundle: string, ...args: string[]) => {
    return { what, instructions: instructionsOf(env, bundle, ...args) };
  };
  const injection = count("create, a device", wrapper.env, gpu0, ...create(gpu0));
  const grown = [...claims, ...sized, asYaml].map(({ name, scene, bundle }) =>
    count(name, scene.env, bundle, ...create(bundle)),
  );
  return {
    sections: [
      {
        title: "Instructions (valgrind --tool=callgrind), the same in every run",
        how: `until Sluice becomes the runtime; config.json of ${kB(configBytes)}, one spec of ${kB(driverSpec.length)} with ${DEVICES} devices, unless said`,
        rows: [
          injection,
          count("create, asks for nothing", wrapper.env, plain, ...create(plain)),
          count("state (passed on)", wrapper.env, plain, "state", ID),
          ...grown,
        ],
      },
    ],
    bounds: [
      { what: "the injection", value: injection.instructions / 1e6, limit: 16, unit: "M instructions", exact: true },
    ],
  };
}

// --- The executable

/** Whether an ELF file of 64 bits names an interpreter (PT_INTERP) or libraries (PT_DYNAMIC). */
function isStatic(file: string): boolean {
  const elf = fs.readFileSync(file);
  const [start, size, count] = [Number(elf.readBigUInt64LE(32)), elf.readUInt16LE(54), elf.readUInt16LE(56)] as const;
  const types = Array.from({ length: count }, (_, i) => elf.readUInt32LE(start + i * size));
  return !types.includes(3) && !types.includes(2);
}

// --- Report

function kB(bytes: number): string {
  return `${(bytes / 1000).toFixed(0)} kB`;
}

function signed(number: number | undefined): string {
  return number === undefined ? "" : `${number >= 0 ? "+" : ""}${number.toFixed(2)}`;
}

function print(section: Section): void {
  const columns: [string, (row: Row) => string][] = [
    ["", (r) => r.what],
    ["min ms", (r) => r.min?.toFixed(2) ?? ""],
    ["median", (r) => r.median?.toFixed(2) ?? ""],
    ["p90", (r) => r.p90?.toFixed(2) ?? ""],
    ["over", (r) => signed(r.over)],
    ["of CPU", (r) => signed(r.cpuOver)],
    ["ratio", (r) => r.ratio?.toFixed(2) ?? ""],
    ["peak KiB", (r) => r.peakKiB?.toString() ?? ""],
    ["M instr.", (r) => (r.instructions === undefined ? "" : (r.instructions / 1e6).toFixed(2))],
  ];
  const used = columns.filter(([title, cell]) => title === "" || section.rows.some((r) => cell(r) !== ""));
  const lines = [used.map(([title]) => title), ...section.rows.map((r) => used.map(([, cell]) => cell(r)))];
  const widths = used.map((_, i) => Math.max(...lines.map((line) => line[i]?.length ?? 0)));
  const text = lines.map((line) =>
    line.map((cell, i) => (i === 0 ? cell.padEnd(widths[i] ?? 0) : cell.padStart(widths[i] ?? 0))).join("  "),
  );
  process.stdout.write(`\n${section.title}\n${section.how === "" ? "" : `(${section.how})\n`}${text.join("\n")}\n`);
}

function main(): void {
  const load = os.loadavg()[0] ?? 0;
  if (load > 0.5) {
    process.stdout.write(
      `This machine has other work (load ${load.toFixed(1)}): times and differences will be larger.\n`,
    );
  }
  const sections: Section[] = [];
  const bounds: Bound[] = [];
  for (const part of [containers, ownCdi, alone, passing, growth, instructions]) {
    const result = part();
    for (const section of result.sections) print(section);
    sections.push(...result.sections);
    bounds.push(...result.bounds);
  }
  const bytes = fs.statSync(SUBJECT).size;
  bounds.push({ what: "the executable", value: bytes / 1e6, limit: 3.5, unit: "MB", exact: true });
  const linked = isStatic(SUBJECT);

  process.stdout.write("\nBounds\n");
  for (const { what, value, limit, unit } of bounds) {
    const kept = value <= limit ? "kept" : "NOT KEPT";
    process.stdout.write(`${what.padEnd(44)}${value.toFixed(2).padStart(8)} of ${limit} ${unit}: ${kept}\n`);
  }
  process.stdout.write(`${"the executable is static".padEnd(44)}${(linked ? "yes" : "NO").padStart(8)}\n`);

  const version = (command: string) => execFileSync(command, ["--version"], { encoding: "utf8" }).split("\n")[0];
  const machine = {
    cpu: os.cpus()[0]?.model ?? "",
    cores: os.cpus().length,
    kernel: os.release(),
    load,
    runc: version("runc"),
    valgrind: version("valgrind"),
  };
  fs.mkdirSync(path.dirname(output), { recursive: true });
  fs.writeFileSync(output, `${JSON.stringify({ quick, machine, bounds, isStatic: linked, sections }, null, 2)}\n`);
}

try {
  main();
} finally {
  for (const id of [CONTAINER, RUNNING]) spawnSync("runc", ["delete", "--force", id], { stdio: "ignore" });
}
