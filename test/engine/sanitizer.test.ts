/*
 * The C code and the engine under AddressSanitizer, UndefinedBehaviorSanitizer and LeakSanitizer: the unit tests, every
 * command on a real bundle, and hostile input. Any report fails.
 */

import assert from "node:assert/strict";
import { execFileSync, spawn, spawnSync } from "node:child_process";
import * as fs from "node:fs";
import * as path from "node:path";
import { test } from "node:test";
import { refusals, runBounded, testHostile } from "../support/hostile.ts";
import { containerId, folder, needs, receiptOf } from "../support/machine.ts";
import { makeBundle, makeHost, ROOT } from "../support/simulated-host.ts";

const options = needs("root", "build", "runc", "busybox", "cc");
const ASAN = path.join(ROOT, "build/asan");
const SLUICE = path.join(ASAN, "sluice");
const RUNTIME = path.join(ASAN, "sluice-runtime");
/** No code of ours is 99. A program that stops at a report writes lines that are not those of a refusal. */
const env = { ASAN_OPTIONS: "detect_leaks=1:exitcode=99", UBSAN_OPTIONS: "print_stacktrace=1" };

/** The unit tests, which run on another core while the tests here do; the last of these waits for them. */
let unitTests: Promise<{ code: number | null; out: string }> | undefined;

function startUnitTests(): typeof unitTests {
  const child = spawn(process.execPath, ["--import", "tsx", "scripts/unit.ts", "--sanitize"], { cwd: ROOT });
  let out = "";
  for (const stream of [child.stdout, child.stderr]) stream.on("data", (data) => (out += data));
  return new Promise((resolve, reject) => {
    child.on("error", reject);
    child.on("close", (code) => resolve({ code, out }));
  });
}

test("the sanitizer build builds", options, () => {
  const built = spawnSync(process.execPath, ["--import", "tsx", "scripts/build.ts", "--sanitize"], {
    cwd: ROOT,
    encoding: "utf8",
  });
  assert.deepEqual([built.stderr, built.status], ["", 0]);
  unitTests = startUnitTests();
});

test("the sanitizers work here: each of their mistakes is reported", options, (t) => {
  const source = path.join(folder(t), "mistakes.c");
  fs.writeFileSync(
    source,
    `#include <stdlib.h>
int main(int argc, char **argv)
{
    char *volatile p = malloc(8);

    if (argv[1][0] == 'l')
        p = NULL; // a leak
    else if (argv[1][0] == 'o')
        p[7 + argc] = 1; // beyond the end: argc is 2
    else
        argc += 2147483647; // an overflow
    free(p);
    return argc == 0;
}
`,
  );
  const program = source.replace(".c", "");
  const flags = ["-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"];
  execFileSync("cc", [...flags, "-o", program, source]);
  for (const [mistake, report] of [
    ["leak", /LeakSanitizer: detected memory leaks/],
    ["overrun", /heap-buffer-overflow/],
    ["number", /signed integer overflow/],
  ] as const) {
    const r = runBounded(program, [mistake], env);
    assert.match(r.err, report);
    assert.notEqual(r.code, 0);
  }
});

test("every command on a real bundle, and the runtime from create to delete, without a report", options, (t) => {
  const dir = folder(t);
  const host = makeHost(path.join(dir, "host"));
  const fake = path.join(dir, "fake-runc");
  fs.writeFileSync(fake, "#!/bin/sh\nexit $EXIT\n", { mode: 0o755 });
  fs.appendFileSync(host.env.SLUICE_CONFIG, `[runtime]\nruntimes = [${JSON.stringify(fake)}]\n`);
  fs.writeFileSync(
    path.join(host.cdi, "more.yaml"),
    "cdiVersion: 0.6.0\nkind: x.com/y\ndevices:\n- {name: a, containerEdits: {env: [A=b]}}\n",
  );
  const make = (name: string, device: string) =>
    makeBundle(path.join(dir, name), { script: "true", annotations: { "gpu.sluice.dev": device } });
  const [good, bad] = [make("good", "nvidia.com/gpu=0,x.com/y=a"), make("bad", "nvidia.com/gpu=9")];
  const plain = makeBundle(path.join(dir, "plain"), { script: "true" });
  const applied = path.basename(make(containerId(t), "nvidia.com/gpu=1"));
  const [id, other] = [containerId(t), containerId(t)];
  const log = path.join(dir, "log");
  const spec = path.join(host.cdi, "nvidia.json");
  const call = (program: string, args: string[], exit = 0) => {
    const path = process.env["PATH"] ?? "";
    const r = runBounded(program, args, { ...env, ...host.env, PATH: path, EXIT: String(exit) });
    return { ...r, where: `${args.join(" ")}: ${r.code}\n${r.err}` };
  };
  const gives = (code: number, program: string, args: string[], exit?: number) => {
    const r = call(program, args, exit);
    assert.deepEqual([r.err, r.code], ["", code], r.where);
    return r.out;
  };
  const refuses = (code: string, program: string, args: string[]) => {
    const r = call(program, args);
    assert.deepEqual([refusals(r.err), r.code], [[code], code === "E_USAGE" ? 2 : 1], r.where);
  };

  for (let i = 0; i < 2; i++) assert.match(gives(0, SLUICE, ["cdi", "list"]), /^x\.com\/y=a /m); // then from the index
  gives(0, SLUICE, ["cdi", "list", "--json"]);
  gives(0, SLUICE, ["cdi", "list", "--root", "/", "--cdi-dir", host.cdi]);
  gives(0, SLUICE, ["cdi", "show", "nvidia.com/gpu=all"]);
  gives(0, SLUICE, ["cdi", "validate", spec, path.join(host.cdi, "more.yaml")]);
  for (const flags of [[], ["--json"], ["--root", "/"]]) gives(0, SLUICE, ["plan", "--bundle", good, ...flags]);
  gives(0, SLUICE, ["plan", "--spec", path.join(plain, "config.json"), "--device", "nvidia.com/gpu=0"]);
  gives(0, SLUICE, ["help"]);
  const libraries = "/usr/lib/x86_64-linux-gnu";
  for (const [file, text] of [
    [`${libraries}/libcuda.so.1.2`, "library"],
    ["lib64/ld-linux-x86-64.so.2", "loader"],
  ] as const) {
    fs.mkdirSync(path.join(good, "rootfs", path.dirname(file)), { recursive: true });
    fs.writeFileSync(path.join(good, "rootfs", file), text);
  }
  const hook = `printf '{"bundle":"%s"}' "$1" | "$0" cdi-hook --driver 1.2 --library ${libraries}/libcuda.so.1.2=libcuda.so.1`;
  for (let i = 0; i < 2; i++) gives(0, "sh", ["-c", `${hook} --link ${libraries}/gbm/x=../libcuda.so.1`, SLUICE, good]);
  refuses("E_USAGE", SLUICE, ["cdi-hook"]);
  refuses("E_USAGE", SLUICE, ["plan"]);
  refuses("E_CDI_NAME", SLUICE, ["cdi", "show", "a/b"]);
  refuses("E_CDI_UNKNOWN_DEVICE", SLUICE, ["cdi", "show", "a/b=c"]);
  refuses("E_CDI_READ", SLUICE, ["cdi", "validate", "/no/such.json"]);
  refuses("E_BUNDLE_MISSING", SLUICE, ["plan", "--bundle", "/no/such"]);
  refuses("E_CONFIG_MISSING", SLUICE, ["cdi", "list", "--config", "/no/such"]);
  refuses("E_CDI_UNKNOWN_DEVICE", SLUICE, ["apply", "--bundle", bad]);
  assert.match(gives(0, SLUICE, ["apply", "--bundle", path.join(dir, applied)]), /\/dev\/nvidia1/);

  gives(0, RUNTIME, ["create", "--bundle", good, id]);
  assert.ok(fs.existsSync(receiptOf(id)));
  gives(0, RUNTIME, ["create", "--bundle", good, id]); // stamped
  gives(0, RUNTIME, ["state", id]);
  gives(3, RUNTIME, ["delete", id], 3);
  assert.ok(fs.existsSync(receiptOf(id)));
  gives(0, RUNTIME, ["delete", "--force", id]);
  assert.ok(!fs.existsSync(receiptOf(id)));
  gives(5, RUNTIME, ["run", "--bundle", make("run", "nvidia.com/gpu=1"), other], 5);
  gives(0, RUNTIME, ["run", "--bundle", plain, other]);
  refuses("E_CDI_UNKNOWN_DEVICE", RUNTIME, ["--log", log, "--log-format", "json", "create", "--bundle", bad, other]);
  assert.match(fs.readFileSync(log, "utf8"), /E_CDI_UNKNOWN_DEVICE/);
  refuses("E_BUNDLE_MISSING", RUNTIME, ["create", "--bundle", "/no/such", other]);
  fs.chmodSync(fake, 0o644);
  refuses("E_RUNTIME_NOT_FOUND", RUNTIME, ["state", id]);
});

testHostile({ sluice: SLUICE, runtime: RUNTIME, env }, options, true);

test("the unit tests, without a report", options, async () => {
  assert.ok(unitTests !== undefined);
  const { code, out } = await unitTests;
  assert.equal(out.match(/^QuickJS: \d+ passed, 0 failed$/gm)?.length, 2, out.slice(-5000));
  assert.equal(code, 0, out.slice(-5000));
});
