import assert from "node:assert/strict";
import { test } from "node:test";
import { isSettled, readCache, writeCache } from "../../src/sys/cache.ts";
import type { Stat } from "../../src/sys/sys.ts";
import { dir, Killed, link, MemorySys } from "../support/memory-files.ts";

const DIR = "/run/sluice";

function machine(): MemorySys {
  return new MemorySys({ "/run": dir(), [DIR]: dir() });
}

test("a cache gives back what was stored under the same key", () => {
  const sys = machine();
  assert.equal(writeCache(sys, DIR, "a.json", "1 key", "line one\nline two"), true);
  assert.equal(readCache(sys, DIR, "a.json", "1 key"), "line one\nline two");
  assert.equal(sys.stat(`${DIR}/a.json`)?.mode, 0o600);
});

test("a cache is not used for another key, nor for one that starts the same", () => {
  const sys = machine();
  writeCache(sys, DIR, "a.json", "1 key", "body");
  for (const key of ["1 kex", "1 ke", "1 key ", "1 key 4", ""]) {
    assert.equal(readCache(sys, DIR, "a.json", key), undefined, key);
  }
});

test("a missing cache, a missing folder and an unreadable file are no cache", () => {
  const sys = machine();
  assert.equal(readCache(sys, DIR, "a.json", "k"), undefined);
  assert.equal(readCache(sys, "/nowhere", "a.json", "k"), undefined);
  writeCache(sys, DIR, "a.json", "k", "body");
  sys.fail("readText", `${DIR}/a.json`, "EACCES");
  assert.equal(readCache(sys, DIR, "a.json", "k"), undefined);
});

test("a cache that was cut or extended is not used", () => {
  const sys = machine();
  writeCache(sys, DIR, "a.json", "k", "a longer body");
  const whole = sys.text(`${DIR}/a.json`) ?? "";
  assert.equal(whole, "k 13\na longer body");
  for (let length = 0; length < whole.length; length++) {
    sys.put(`${DIR}/a.json`, whole.slice(0, length));
    assert.equal(readCache(sys, DIR, "a.json", "k"), undefined, `cut at ${length}`);
  }
  sys.put(`${DIR}/a.json`, `${whole}!`);
  assert.equal(readCache(sys, DIR, "a.json", "k"), undefined);
});

test("a folder that others own or can write to, or that is a link, holds no caches", () => {
  for (const folder of [dir({ uid: 1000 }), dir({ mode: 0o775 }), dir({ mode: 0o757 }), dir({ mode: 0o1777 })]) {
    const sys = machine();
    writeCache(sys, DIR, "a.json", "k", "body");
    sys.put(DIR, folder);
    assert.equal(readCache(sys, DIR, "a.json", "k"), undefined);
    assert.equal(writeCache(sys, DIR, "b.json", "k", "body"), false);
    assert.deepEqual(sys.names(DIR), ["a.json"]);
  }
  const sys = new MemorySys({ "/real": dir(), [DIR]: link("/real") });
  assert.equal(writeCache(sys, DIR, "a.json", "k", "body"), false);
  assert.deepEqual(sys.names("/real"), []);
});

test("storing makes the folder, but not the folders above it", () => {
  const sys = new MemorySys({ "/run": dir() });
  assert.equal(writeCache(sys, "/run/sluice", "a.json", "k", "body"), true);
  assert.equal(sys.stat("/run/sluice")?.mode, 0o755);
  assert.equal(writeCache(sys, "/run/user/1000/sluice", "a.json", "k", "body"), false);
  assert.equal(sys.stat("/run/user"), undefined);
});

test("a folder that cannot be written to stays without a cache, whichever call fails", () => {
  for (const call of ["lstat", "createFile", "rename"]) {
    const sys = machine();
    sys.fail(call, "*", "EROFS");
    assert.equal(writeCache(sys, DIR, "a.json", "k", "body"), false, call);
    assert.deepEqual(sys.names(DIR), [], call);
  }
});

test("a process killed while it stores leaves the old cache, and its draft is cleared away later", () => {
  for (let calls = 0; ; calls++) {
    const sys = machine();
    writeCache(sys, DIR, "a.json", "old", "old body");
    sys.dieAfter(calls);
    try {
      writeCache(sys, DIR, "a.json", "new", "new body");
      assert.ok(calls > 2, "the store makes several calls");
      return;
    } catch (error) {
      assert.ok(error instanceof Killed);
    }
    sys.heal();
    assert.equal(readCache(sys, DIR, "a.json", "old"), "old body");
    sys.clock += 11_000;
    assert.equal(writeCache(sys, DIR, "a.json", "new", "new body"), true);
    assert.equal(readCache(sys, DIR, "a.json", "new"), "new body");
    assert.deepEqual(sys.names(DIR), ["a.json"]);
  }
});

test("while another process stores the same cache, nothing is written", () => {
  const sys = machine();
  sys.put(`${DIR}/.a.json.new`, "half");
  assert.equal(writeCache(sys, DIR, "a.json", "k", "body"), false);
  assert.deepEqual(sys.names(DIR), [".a.json.new"]);
});

test("a file is settled once a tenth of a second has passed since it changed", () => {
  const at = (ctimeMs: number): Stat => ({ ...(machine().stat(DIR) as Stat), ctimeMs });
  assert.equal(isSettled(at(1000), 1100), true);
  assert.equal(isSettled(at(1000), 1099), false);
  assert.equal(isSettled(at(1000), 900), false);
});
