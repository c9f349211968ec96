/**
 * Runs the unit tests: test/unit and test/node under Node, then test/unit once more inside the executable's engine, so
 * that no difference between V8 and QuickJS goes unseen. `--sanitize` runs only the latter, in the sanitizer build, where
 * they take eight times as long: in two halves at once.
 */

import { spawn } from "node:child_process";
import * as fs from "node:fs";
import * as os from "node:os";
import * as path from "node:path";
import { fileURLToPath } from "node:url";
import * as esbuild from "esbuild";

const root = path.resolve(path.dirname(fileURLToPath(import.meta.url)), "..");
const sanitize = process.argv.includes("--sanitize");

function testsIn(dir: string): string[] {
  const folder = path.join(root, "test", dir);
  if (!fs.existsSync(folder)) return [];
  return fs
    .readdirSync(folder)
    .filter((name) => name.endsWith(".test.ts"))
    .sort()
    .map((name) => path.join(folder, name));
}

/** The tests import Node's test runner, assertions and system calls; here they get those of the executable. */
const substitutes: esbuild.Plugin = {
  name: "substitutes",
  setup(build) {
    const shim = (name: string) => path.join(root, "test/quickjs", name);
    build.onResolve({ filter: /^node:test$/ }, () => ({ path: shim("node-test.ts") }));
    build.onResolve({ filter: /^node:assert\/strict$/ }, () => ({ path: shim("assert.ts") }));
    build.onResolve({ filter: /\/sys\/node\.ts$/ }, () => ({ path: path.join(root, "src/sys/native.ts") }));
  },
};

/** One script of all the given tests for sluice-js. */
export async function bundleForQuickJs(tests: string[], outfile: string): Promise<void> {
  const imports = tests.map((file) => `import ${JSON.stringify(file)};`).join("\n");
  await esbuild.build({
    stdin: {
      contents: `${imports}\nimport { report } from "./test/quickjs/node-test.ts";\nglobalThis.exitCode = report();\n`,
      resolveDir: root,
      loader: "ts",
    },
    bundle: true,
    format: "iife",
    target: "es2023",
    platform: "neutral",
    mainFields: ["module", "main"],
    outfile,
    logLevel: "warning",
    plugins: [substitutes],
  });
}

/** Runs a command with a folder for the tests of system calls, gone afterwards. Gives the exit code. */
async function run(command: string, args: string[], env: Record<string, string> = {}): Promise<number> {
  const folder = fs.mkdtempSync(path.join(os.tmpdir(), "sluice-unit-"));
  try {
    return await new Promise((resolve, reject) => {
      const environment = { ...process.env, ...env, SLUICE_TEST_DIR: folder };
      const child = spawn(command, args, { stdio: "inherit", cwd: root, env: environment });
      child.on("error", reject);
      child.on("exit", (code) => resolve(code ?? 1));
    });
  } finally {
    fs.rmSync(folder, { recursive: true });
  }
}

/** Runs tests in the executable's engine. */
async function runInQuickJs(
  tests: string[],
  build: string,
  name: string,
  env?: Record<string, string>,
): Promise<number> {
  const script = path.join(build, "gen", `${name}.js`);
  await bundleForQuickJs(tests, script);
  return run(path.join(build, "sluice-js"), ["run", script], env);
}

async function main(): Promise<number> {
  const pure = testsIn("unit");
  if (sanitize) {
    const env = {
      ASAN_OPTIONS: "detect_leaks=1:malloc_context_size=8:quarantine_size_mb=16",
      LSAN_OPTIONS: `suppressions=${path.join(root, "test/quickjs/leaks.supp")}:print_suppressions=0`,
    };
    const halves = [0, 1].map((half) => pure.filter((_, i) => i % 2 === half));
    const runs = halves.map((tests, i) => runInQuickJs(tests, path.join(root, "build/asan"), `unit-tests-${i}`, env));
    return Math.max(...(await Promise.all(runs)));
  }
  const all = [...pure, ...testsIn("node")];
  const code = await run(process.execPath, ["--import", "tsx", "--test", ...all]);
  return code === 0 ? runInQuickJs(pure, path.join(root, "build"), "unit-tests") : code;
}

process.exit(await main());
