import assert from "node:assert/strict";
import * as fs from "node:fs";
import * as path from "node:path";
import { test } from "node:test";
import { isPrintable } from "../support/fuzz.ts";
import { refusals, runBounded, testHostile } from "../support/hostile.ts";
import { folder, needs } from "../support/machine.ts";
import { RUNTIME, SLUICE } from "../support/simulated-host.ts";

const options = needs("root", "build");
const PASSWD = fs.readFileSync("/etc/passwd", "utf8");

testHostile({ sluice: SLUICE, runtime: RUNTIME }, options, false);

/** A shell, for arguments that are not UTF-8, and for limits. */
function shell(script: string, ...args: string[]) {
  return runBounded("sh", ["-c", script, "sh", ...args], { PATH: process.env["PATH"] ?? "" });
}

test("nothing of this wrote through a link to a file of the machine", options, () => {
  assert.equal(fs.readFileSync("/etc/passwd", "utf8"), PASSWD);
});

test("arguments that are not UTF-8 name nothing, whatever they are", options, (t) => {
  const dir = folder(t);
  const raw = "$(printf '\\377\\376')";
  for (const [call, code, exit] of [
    [`${SLUICE} plan --bundle "${dir}/${raw}"`, "E_BUNDLE_MISSING", 1],
    [`${RUNTIME} create --bundle "${dir}/${raw}" web`, "E_BUNDLE_MISSING", 1],
    [`${SLUICE} cdi show "x.com/gpu=${raw}"`, "E_CDI_NAME", 1],
    [`${SLUICE} cdi validate "${dir}/${raw}.json"`, "E_CDI_READ", 1],
    [`${SLUICE} cdi list --config "${dir}/${raw}"`, "E_CONFIG_MISSING", 1],
    [`${SLUICE} "${raw}"`, "E_USAGE", 2],
    [`${SLUICE} plan "--${raw}"`, "E_USAGE", 2],
  ] as const) {
    const r = shell(`${call}; exit $?`);
    assert.deepEqual([refusals(r.err), r.code], [[code], exit], call);
  }
});

test("a command line that drives a terminal comes back escaped", options, () => {
  const drive = "\u001b[2J\n\u202e";
  for (const [args, code, exit] of [
    [[drive], "E_USAGE", 2],
    [["plan", `--${drive}`], "E_USAGE", 2],
    [["plan", "--bundle", "/no/such", "--annotation", drive], "E_BUNDLE_MISSING", 1],
    [["plan", "--bundle", drive], "E_BUNDLE_MISSING", 1],
    [["plan", "--spec", drive], "E_BUNDLE_MISSING", 1],
    [["plan", "--bundle", "/no/such", "--config", drive], "E_CONFIG_MISSING", 1],
    [["cdi", "list", "--root", `/no/such${drive}`], "", 0],
    [["cdi", "list", "--cdi-dir", `/no/such${drive}`], "", 0],
    [["cdi", "list", "--cdi-dir", `/dev/null/${drive}`], "", 0],
    [["cdi", "show", drive], "E_CDI_NAME", 1],
    [["cdi", "validate", drive], "E_CDI_READ", 1],
    [["cdi", "validate", `/no/such/${drive}.json`], "E_CDI_READ", 1],
  ] as const) {
    const r = runBounded(SLUICE, args, {});
    const where = JSON.stringify([args, r]);
    assert.deepEqual([refusals(r.err), r.code], [code === "" ? [] : [code], exit], where);
    assert.ok(isPrintable(r.out), where);
    assert.ok(r.out.split("\n").length <= 2, where);
  }
});

test("a spec file's name that drives a terminal is shown escaped by every command", options, (t) => {
  const dir = folder(t);
  const cdi = path.join(dir, "cdi");
  const file = path.join(cdi, "\u001b[2J\u202e.json");
  fs.mkdirSync(cdi);
  const env = ["FROM=\u001b[2J\u009b"];
  fs.writeFileSync(
    file,
    JSON.stringify({ cdiVersion: "0.6.0", kind: "x.com/gpu", devices: [{ name: "0", containerEdits: { env } }] }),
  );
  fs.writeFileSync(path.join(dir, "config.json"), "{}");
  for (const args of [
    ["cdi", "list"],
    ["cdi", "show", "x.com/gpu=0"],
    ["cdi", "validate", file],
    ["plan", "--bundle", dir, "--device", "x.com/gpu=0"],
  ]) {
    const r = runBounded(SLUICE, [...args, "--cdi-dir", cdi], {});
    assert.deepEqual([r.err, r.code], ["", 0]);
    assert.ok(isPrintable(r.out), JSON.stringify(r.out));
  }
});

test("more devices, variables and arguments than a call can have arguments are no more than many", options, (t) => {
  const dir = folder(t);
  const devices = Array.from({ length: 70_000 }, (_, i) => `{"name":"x${i}","containerEdits":{"env":["A=b"]}}`);
  fs.writeFileSync(
    path.join(dir, "a.json"),
    `{"cdiVersion":"0.6.0","kind":"x.com/gpu","devices":[${devices.join(",")}]}`,
  );
  const listed = runBounded(SLUICE, ["cdi", "list", "--cdi-dir", dir], {});
  assert.deepEqual([listed.err, listed.code, listed.out.split("\n").length], ["", 0, 70_002]);
  const env = Array.from({ length: 70_000 }, (_, i) => `V${i}=`);
  const spec = { cdiVersion: "0.6.0", kind: "x.com/y", devices: [{ name: "0", containerEdits: { env } }] };
  fs.writeFileSync(path.join(dir, "a.json"), JSON.stringify(spec));
  const shown = runBounded(SLUICE, ["cdi", "show", "x.com/y=0", "--cdi-dir", dir], {});
  assert.deepEqual([shown.err, shown.code], ["", 0]);
  const many = runBounded(SLUICE, ["cdi", "validate", "--", ...Array<string>(70_000).fill("x")], {});
  assert.deepEqual([many.code, new Set(refusals(many.err))], [1, new Set(["E_CDI_READ"])]);
});

test("the stack that the process has bounds the nesting, also where that is small", options, (t) => {
  const dir = folder(t);
  const file = path.join(dir, "config.json");
  for (const depth of [10_000, 100_000]) {
    fs.writeFileSync(file, `{"x":${"[".repeat(depth)}${"]".repeat(depth)}}`);
    for (const kilobytes of [64, 128, 512]) {
      const r = shell(`ulimit -s ${kilobytes}; ${SLUICE} plan --spec "$1"; exit $?`, file);
      assert.deepEqual([refusals(r.err), r.code], [["E_BUNDLE_JSON"], 1]);
    }
  }
});

test("a full disk behind standard output is told; one behind standard error is not a success", options, () => {
  const out = shell(`${SLUICE} cdi list >/dev/full; exit $?`);
  assert.deepEqual([refusals(out.err), out.code], [["E_OUTPUT"], 1]);
  assert.notEqual(shell(`${SLUICE} plan --bundle /no/such 2>/dev/full; exit $?`).code, 0);
  assert.notEqual(shell(`${RUNTIME} create --bundle /no/such web 2>/dev/full; exit $?`).code, 0);
  assert.notEqual(shell(`${RUNTIME} create --bundle /no/such web 2>&-; exit $?`).code, 0);
  assert.equal(shell(`${SLUICE} cdi list >&-; exit $?`).code, 0);
});
