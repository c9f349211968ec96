/**
 * Runs the unit tests: test/unit and test/node under Node, then test/unit once more inside the executable's engine, so
 * that no difference between V8 and QuickJS goes unseen. `--sanitize` runs only the latter, in the sanitizer build.
 */

import { spawnSync } from "node:child_process";
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

/** A folder for the tests of system calls, gone afterwards. */
function withFolder(run: (env: NodeJS.ProcessEnv) => number): number {
  const folder = fs.mkdtempSync(path.join(os.tmpdir(), "sluice-unit-"));
  try {
    return run({ ...process.env, SLUICE_TEST_DIR: folder });
  } finally {
    fs.rmSync(folder, { recursive: true });
  }
}

function run(command: string, args: string[], env: NodeJS.ProcessEnv): number {
  const { status, error } = spawnSync(command, args, { stdio: "inherit", cwd: root, env });
  if (error !== undefined) throw error;
  return status ?? 1;
}

async function main(): Promise<number> {
  const pure = testsIn("unit");
  if (!sanitize) {
    const all = [...pure, ...testsIn("node")];
    const code = withFolder((env) => run(process.execPath, ["--import", "tsx", "--test", ...all], env));
    if (code !== 0) return code;
  }
  const build = path.join(root, "build", sanitize ? "asan" : "");
  const script = path.join(build, "gen/unit-tests.js");
  await bundleForQuickJs(pure, script);
  return withFolder((env) => run(path.join(build, "sluice-js"), ["run", script], env));
}

process.exit(await main());
