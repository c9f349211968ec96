/**
 * Builds the executables.
 *
 *   build/sluice          the product: static, every door and part linked in as bytecode
 *   build/sluice-runtime  a link to it, under whose name it is the OCI runtime
 *   build/sluiced         the daemon: one script for Node, with all its packages in it
 *   build/sluice-js       the same engine and system calls, for a script given by name: bytecode compiler, test runner
 *   build/asan/...        all three under AddressSanitizer and UBSan (`--sanitize`)
 *   build/test/sluice     the product with the doors and parts of test/fixtures/doors as well (`--test-doors`)
 *
 * A file `src/<room>/<name>.door.ts` is the entry of the bundle `door:<name>`; `<name>.part.ts` is a bundle of its
 * own, `part:<name>`, which loads at the first call of one of its functions (see `partLoader`).
 */

import { execFileSync, spawn } from "node:child_process";
import { createHash } from "node:crypto";
import * as fs from "node:fs";
import * as path from "node:path";
import { fileURLToPath } from "node:url";
import { decode } from "@jridgewell/sourcemap-codec";
import * as esbuild from "esbuild";
import { addTrainedSnapshot } from "./snapshot.ts";

const sanitize = process.argv.includes("--sanitize");
const root = path.resolve(path.dirname(fileURLToPath(import.meta.url)), "..");
const build = path.join(root, "build");
const testDoors = process.argv.includes("--test-doors");
/** The engine, the system calls and the compiler, which do not depend on the doors. */
const base = sanitize ? path.join(build, "asan") : build;
const out = testDoors ? path.join(build, "test") : base;
const gen = path.join(out, "gen");

/** The parts of QuickJS-ng that are linked in; the rest of it is its own command line. */
const ENGINE_SOURCES = ["quickjs.c", "dtoa.c", "libregexp.c", "libunicode.c"];

// glibc asks the processor what it can, some twenty times, before main: in a virtual machine each of those instructions
// ends in the hypervisor, which costs more than all else that a call which is only passed on does. musl asks nothing.
const CC = sanitize ? "cc" : "musl-gcc";
// musl has no headers of the kernel; the system's come after all others.
const KERNEL_HEADERS = sanitize
  ? []
  : [`/usr/include/${multiarch()}`, "/usr/include"].flatMap((d) => ["-idirafter", d]);
const SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-fno-omit-frame-pointer", "-g"];
// -O3 and fixed addresses each save a twentieth or more of the instructions of a container start.
const OPTIMIZE = sanitize ? ["-O1", ...SANITIZERS] : ["-O3", "-fno-pie"];
const OUR_C = ["-std=c11", "-Wall", "-Wextra", "-Werror", ...KERNEL_HEADERS].concat(
  sanitize ? ["-DSLUICE_FREE_AT_EXIT"] : ["-DSLUICE_SNAPSHOT"],
);
// UBSan on the engine's own code would report what it does on purpose (unaligned reads of bytecode, for one).
// Its assertions, a twentieth of all instructions, are for the sanitizer build. What it does where it believes that
// AddressSanitizer is there, asking for each block by itself, it does here too: it would make pools of small blocks,
// among which those of a snapshot that calls write to could not be laid together.
const ENGINE_C = ["-std=gnu11", "-w", "-D_GNU_SOURCE", "-DQUICKJS_NG_BUILD", "-fno-sanitize=undefined"].concat(
  sanitize ? [] : ["-DNDEBUG", "-D__SANITIZE_ADDRESS__"],
);
const LINK = sanitize ? SANITIZERS : ["-static", "-s"];
/** Where Debian and Ubuntu keep what depends on the processor: `x86_64-linux-gnu`. */
function multiarch(): string {
  return execFileSync("cc", ["-print-multiarch"], { encoding: "utf8" }).trim();
}

function run(command: string, args: string[]): Promise<void> {
  return new Promise((resolve, reject) => {
    const child = spawn(command, args, { stdio: "inherit", cwd: root });
    child.on("error", reject);
    child.on("exit", (code) => (code === 0 ? resolve() : reject(new Error(`${command} ${args.join(" ")}: ${code}`))));
  });
}

/** A file whose content changes only when it must, so that what is built from it is not built again. */
function writeIfChanged(file: string, content: string): void {
  if (!fs.existsSync(file) || fs.readFileSync(file, "utf8") !== content) fs.writeFileSync(file, content);
}

/** Runs `make` unless `target` was last made from the same inputs by the same command. */
async function unlessFresh(target: string, inputs: string[], recipe: string[], make: () => void | Promise<void>) {
  const hash = createHash("sha256").update(JSON.stringify(recipe));
  for (const input of inputs) hash.update(fs.readFileSync(input));
  const digest = hash.digest("hex");
  const stamp = `${target}.made-from`;
  if (fs.existsSync(target) && fs.existsSync(stamp) && fs.readFileSync(stamp, "utf8") === digest) return;
  fs.rmSync(stamp, { force: true });
  await make();
  fs.writeFileSync(stamp, digest);
}

async function compileC(source: string, flags: string[], headers: string[], dir = base): Promise<string> {
  const object = path.join(dir, "obj", `${path.basename(source, ".c")}.o`);
  const args = [...flags, ...OPTIMIZE, "-c", source, "-o", object];
  await unlessFresh(object, [source, ...headers], [CC, ...args], () => run(CC, args));
  return object;
}

function filesIn(dir: string, ending: string): string[] {
  return fs
    .readdirSync(dir, { recursive: true, encoding: "utf8" })
    .filter((name) => name.endsWith(ending))
    .map((name) => path.join(dir, name))
    .sort();
}

/** The QuickJS-ng objects: half a minute of one core when new, so compiled two at a time. */
async function compileEngine(engine: string): Promise<string[]> {
  const headers = filesIn(engine, ".h");
  return Promise.all(ENGINE_SOURCES.map((name) => compileC(path.join(engine, name), ENGINE_C, headers)));
}

/**
 * Replaces the import of a `*.part.ts` file by functions of the same names that load the part's bundle when first
 * called. So heavy parsers cost nothing where they are not needed, and no caller has to know: under Node, the same
 * import is an ordinary one.
 */
const partLoader: esbuild.Plugin = {
  name: "part-loader",
  setup(api) {
    api.onResolve({ filter: /\.part\.ts$/ }, (args) =>
      args.kind === "entry-point" || args.pluginData === "itself"
        ? undefined
        : { path: path.resolve(args.resolveDir, args.path), namespace: "part" },
    );
    api.onLoad({ filter: /.*/, namespace: "part" }, async (args) => {
      const probe = await esbuild.build({
        entryPoints: [args.path],
        bundle: true,
        packages: "external",
        external: ["sluice:*"],
        format: "esm",
        metafile: true,
        write: false,
      });
      const names = Object.values(probe.metafile.outputs).flatMap((o) => o.exports);
      const stub = names.map((n) => `export function ${n}(...args) { return part().${n}(...args); }`);
      const name = path.basename(args.path, ".part.ts");
      return {
        contents: `let loaded;\nfunction part() { return (loaded ??= native.part("${name}")); }\n${stub.join("\n")}\n`,
        loader: "js",
      };
    });
  },
};

/** `sluice:places`, imported by the part that explains stack traces (src/sys/places.d.ts says what it is). */
function placesPlugin(places: Record<string, string>): esbuild.Plugin {
  return {
    name: "places",
    setup(api) {
      api.onResolve({ filter: /^sluice:places$/ }, () => ({ path: "places", namespace: "places" }));
      api.onLoad({ filter: /.*/, namespace: "places" }, () => ({ contents: JSON.stringify(places), loader: "json" }));
    },
  };
}

/** A source map as one text, without what a stack trace has no use for. */
function placesOf(map: { sources: string[]; mappings: string }): string {
  // The stub of a part stands for the part, of which it has no lines.
  const isStub = map.sources.map((source) => source.startsWith("part:"));
  const sources = map.sources.map((source) => path.relative(root, path.resolve(gen, source.replace(/^part:/, ""))));
  const rows = decode(map.mappings).map((segments) => {
    const row: string[] = [];
    let last = "";
    for (const [column, source, line = 0] of segments) {
      if (source === undefined) continue;
      const place = isStub[source] ? `${source}:0` : `${source}:${line + 1}`;
      if (place !== last) row.push(`${column + 1}:${place}`);
      last = place;
    }
    return row.join(" ");
  });
  return [sources.join("\t"), ...rows].join("\n");
}

/** Names the sources that the doors and parts are made of (src/sys/version.ts). */
const sourcesDigest = filesIn(path.join(root, "src"), ".ts")
  .reduce((hash, file) => hash.update(fs.readFileSync(file)), createHash("sha256"))
  .digest("hex")
  .slice(0, 12);

interface Bundle {
  /** `door:runtime` */
  name: string;
  /** The script, whose basename stands in stack traces. */
  script: string;
}

async function bundle(entry: string, places: Record<string, string>): Promise<Bundle> {
  const [, stem, kind] = /([^/]+)\.(door|part)\.ts$/.exec(entry) as unknown as [string, string, "door" | "part"];
  const script = path.join(gen, `${kind}-${stem}.js`);
  const result = await esbuild.build({
    entryPoints: [entry],
    bundle: true,
    format: "iife",
    globalName: kind,
    target: "es2023",
    platform: "neutral",
    mainFields: ["module", "main"],
    minifySyntax: true,
    // Each name is an atom to make at start; stack traces have file and line without them.
    minifyIdentifiers: true,
    legalComments: "none",
    charset: "utf8",
    sourcemap: "external",
    outfile: script,
    write: false,
    logLevel: "warning",
    plugins: [partLoader, placesPlugin(places)],
    define: { SOURCES: JSON.stringify(sourcesDigest) },
  });
  for (const file of result.outputFiles) {
    if (file.path.endsWith(".map")) {
      places[path.basename(script)] = placesOf(JSON.parse(file.text));
    } else {
      writeIfChanged(script, file.text);
    }
  }
  return { name: `${kind}:${stem}`, script };
}

async function linkProduct(engine: string, objectFiles: string[], compiler: string): Promise<void> {
  const sources = [path.join(root, "src"), ...(testDoors ? [path.join(root, "test/fixtures/doors")] : [])];
  const places: Record<string, string> = {};
  const entries = [".door.ts", ".part.ts"].flatMap((ending) => sources.flatMap((dir) => filesIn(dir, ending)));
  // The part that holds the places of all others is bundled last.
  entries.sort((a, b) => Number(a.endsWith("trace.part.ts")) - Number(b.endsWith("trace.part.ts")));
  const bundles: Bundle[] = [];
  for (const entry of entries) bundles.push(await bundle(entry, places));

  const rows: string[] = [];
  const declarations: string[] = [];
  for (const [i, { name, script }] of bundles.entries()) {
    const bytecode = script.replace(/\.js$/, ".bin");
    await unlessFresh(bytecode, [script, compiler], [], () => run(compiler, ["compile", script, bytecode]));
    declarations.push(
      `__asm__(".section .rodata\\n.balign 8\\nbundle_${i}:\\n.incbin \\"${bytecode}\\"\\nbundle_${i}_end:\\n.byte 0\\n.previous");`,
      `extern const unsigned char bundle_${i}[], bundle_${i}_end[];`,
    );
    rows.push(`    {"${name}", bundle_${i}, bundle_${i}_end},`);
  }
  const table = path.join(gen, "bundles.c");
  writeIfChanged(
    table,
    `// Written by scripts/build.ts.\n#include "bundles.h"\n\n${declarations.join("\n")}\n\n` +
      `const struct sluice_bundle sluice_bundles[] = {\n${rows.join("\n")}\n};\n` +
      `const size_t sluice_bundle_count = ${rows.length};\n`,
  );
  const native = path.join(root, "native");
  const flags = [...OUR_C, "-isystem", engine, "-I", native];
  const bytecodes = bundles.map((b) => b.script.replace(/\.js$/, ".bin"));
  const headers = filesIn(native, ".h");
  const objectOfTable = await compileC(table, flags, [...headers, ...bytecodes], out);
  const main = await compileC(path.join(native, "main.c"), flags, headers);
  const memoryIn = (dir: string, ...more: string[]) =>
    compileC(path.join(native, "memory.c"), [...flags, ...more], headers, dir);
  const link = async (program: string, memory: string, ...more: string[]) => {
    const objects = [main, objectOfTable, memory, ...objectFiles];
    const args = [...LINK, ...more, "-o", program, ...objects, "-lm", "-lpthread"];
    await unlessFresh(program, objects, [CC, ...args], () => run(CC, args));
  };
  const product = path.join(out, "sluice");
  if (sanitize) {
    await link(product, await memoryIn(base));
  } else {
    const plain = path.join(out, "obj/sluice-without-snapshot");
    const trainee = path.join(out, "obj/sluice-in-training");
    await link(plain, await memoryIn(base));
    await link(trainee, await memoryIn(path.join(base, "training"), "-DSLUICE_TRAINING"), "-Wl,--wrap=execve");
    const recipe = path.join(root, "scripts/snapshot.ts");
    await unlessFresh(product, [plain, trainee, recipe], [], () => addTrainedSnapshot(plain, trainee, product));
  }
  const runtime = path.join(out, "sluice-runtime");
  fs.rmSync(runtime, { force: true });
  fs.symlinkSync("sluice", runtime);
}

/** What keeps the daemon small, of glibc and V8; docs/sluiced.md says what each is for. All are there in Node 18 to 24. */
const DAEMON_INTERPRETER = [
  "MALLOC_TRIM_THRESHOLD_=131072",
  "node",
  "--max-semi-space-size=1",
  "--v8-pool-size=1",
  "--optimize-for-size",
  "--expose-gc", // src/daemon/heap.ts
];
/** One that Node 22 does not have, and would not start with. */
const DAEMON_SETUP =
  'if (Number.parseInt(process.versions.node, 10) < 22) require("node:v8").setFlagsFromString("--interrupt-budget=1320000");';

/** What packages load for features that sluiced does not use; together some 5 MB of a running Node. */
const UNUSED: readonly (readonly [module: RegExp, importer: RegExp])[] = [
  [/^\.\/lib\/(?:pushgateway|cluster|summary|defaultMetrics)$/, /\/prom-client\/index\.js$/],
  [/^@grpc\/proto-loader$/, /\/@grpc\/grpc-js\//], // of channelz; our messages are protobuf-es's
  [/^\.\/(?:lib\/)?transport$/, /\/pino\/(?:lib\/tools|pino)\.js$/], // worker threads
];

const leaveOut: esbuild.Plugin = {
  name: "leave-out",
  setup(api) {
    for (const [module, importer] of UNUSED) {
      api.onResolve({ filter: module }, (args) =>
        importer.test(args.importer) ? { path: args.path, namespace: "left-out" } : undefined,
      );
    }
    api.onLoad({ filter: /.*/, namespace: "left-out" }, () => ({ contents: "module.exports = {};", loader: "js" }));
  },
};

/**
 * sluiced, as one ES module. Node tells a module by its ending, so that the file itself has one, and build/sluiced is a
 * link to it. The options of Node stand in the first line, since an engine that starts its NRI plugins itself hands over
 * neither PATH (env looks into /bin and /usr/bin then) nor NODE_OPTIONS, and to start Node twice would take twice as long.
 */
async function bundleDaemon(): Promise<void> {
  const script = path.join(build, "sluiced.mjs");
  const { outputFiles } = await esbuild.build({
    entryPoints: [path.join(root, "src/daemon/sluiced.ts")],
    bundle: true,
    format: "esm",
    platform: "node",
    target: "node18.19",
    // Node keeps the source in memory. Names stay, for stack traces.
    minifyWhitespace: true,
    minifySyntax: true,
    legalComments: "none",
    // Packages that are CommonJS ask for Node's modules in its way.
    banner: {
      js:
        `#!/usr/bin/env -S ${DAEMON_INTERPRETER.join(" ")}\n` +
        `import { createRequire } from "node:module"; const require = createRequire(import.meta.url);` +
        DAEMON_SETUP,
    },
    outfile: script,
    write: false,
    logLevel: "warning",
    plugins: [leaveOut],
    define: { SOURCES: JSON.stringify(sourcesDigest) },
  });
  writeIfChanged(script, (outputFiles[0] as esbuild.OutputFile).text);
  fs.chmodSync(script, 0o755);
  const program = path.join(build, "sluiced");
  fs.rmSync(program, { force: true });
  fs.symlinkSync("sluiced.mjs", program);
}

async function main(): Promise<void> {
  const folders = [gen, ...[base, out, path.join(base, "training")].map((dir) => path.join(dir, "obj"))];
  for (const dir of folders) fs.mkdirSync(dir, { recursive: true });
  if (!sanitize && !testDoors) await bundleDaemon();
  await run("bash", [path.join(root, "scripts/quickjs.sh")]);
  const engine = path.join(build, "quickjs/src");
  const native = path.join(root, "native");
  const flags = [...OUR_C, "-isystem", engine, "-I", native];
  const headers = filesIn(native, ".h");
  const [engineObjects, ...ours] = await Promise.all([
    compileEngine(engine),
    ...["sysmod.c", "bulk.c", "engine.c", "js.c"].map((name) => compileC(path.join(native, name), flags, headers)),
  ]);
  const [sysmod, bulk, engineObject, js] = ours as [string, string, string, string];
  const shared = [sysmod, bulk, engineObject, ...engineObjects];
  const compiler = path.join(base, "sluice-js");
  const args = [...LINK, "-o", compiler, js, ...shared, "-lm", "-lpthread"];
  await unlessFresh(compiler, [js, ...shared], [CC, ...args], () => run(CC, args));
  await linkProduct(engine, shared, compiler);
}

await main();
