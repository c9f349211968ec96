import assert from "node:assert/strict";
import { execFileSync, spawnSync } from "node:child_process";
import { createHash } from "node:crypto";
import * as fs from "node:fs";
import * as os from "node:os";
import * as path from "node:path";
import { test } from "node:test";
import { fileURLToPath } from "node:url";

const ROOT = fileURLToPath(new URL("../..", import.meta.url));
const SCRIPT = fs.readFileSync(path.join(ROOT, "scripts/quickjs.sh"), "utf8");
/** The files that the script takes, as it lists them. */
const FILES = (/^files=\(([^)]*)\)/m.exec(SCRIPT)?.[1] ?? "").trim().split(/\s+/);
const TARGET = "build/quickjs/src";
const ZEROS = "0".repeat(64);

const sha256 = (data: string | Buffer) => createHash("sha256").update(data).digest("hex");

/** A checkout with the script, a made-up release 9.9.9 in `source`, and a mirror that has it as a package. */
function checkout(run: (at: string, call: (env?: Record<string, string>, ...args: string[]) => string) => void): void {
  const at = fs.mkdtempSync(path.join(os.tmpdir(), "sluice quickjs-"));
  const write = (file: string, text: string) => {
    fs.mkdirSync(path.dirname(path.join(at, file)), { recursive: true });
    fs.writeFileSync(path.join(at, file), text);
  };
  try {
    write("scripts/quickjs.sh", SCRIPT);
    for (const file of FILES) write(`source/${file}`, `/* ${file} */\n`);
    for (const file of [...FILES, "qjs.c"]) write(`package/usr/src/quickjs-ng/${file}`, `/* ${file} */\n`);
    write(
      "package/DEBIAN/control",
      "Package: qjs-src\nVersion: 9.9.9-1\nArchitecture: all\nMaintainer: a\nDescription: b\n",
    );
    const pool = "pool/main/q/qjs-src_9.9.9-1_all.deb";
    fs.mkdirSync(path.join(at, "mirror", path.dirname(pool)), { recursive: true });
    execFileSync("dpkg-deb", ["--root-owner-group", "-b", `${at}/package`, `${at}/mirror/${pool}`], {
      stdio: "ignore",
    });
    const source = sha256(FILES.map((file) => `/* ${file} */\n`).join(""));
    const deb = sha256(fs.readFileSync(`${at}/mirror/${pool}`));
    write("native/quickjs.lock", `# pins\n0.0.1 ${ZEROS} pool/none.deb ${ZEROS}\n9.9.9 ${source} ${pool} ${deb}\n`);
    run(at, (env = {}, ...args) => {
      // A mirror that is a folder, and no home of the caller's: nothing here touches the network.
      const { status, stderr } = spawnSync("bash", ["scripts/quickjs.sh", ...args], {
        cwd: at,
        encoding: "utf8",
        env: { PATH: process.env["PATH"], SLUICE_DEBIAN_MIRROR: `file:${at}/empty`, ...env },
      });
      return `${status} ${stderr}`;
    });
  } finally {
    fs.rmSync(at, { recursive: true });
  }
}

test("a pinned source folder is taken, with the files that are compiled and no others", () => {
  checkout((at, call) => {
    const env = { QUICKJS_SRC: `${at}/source` };
    fs.writeFileSync(`${at}/source/qjs.c`, "");
    assert.equal(call(env), `0 quickjs: QuickJS-ng 9.9.9 from ${at}/source\n`);
    assert.deepEqual(fs.readdirSync(path.join(at, TARGET)), FILES);
    assert.equal(call(env), "0 ", "the second call does nothing");
    assert.equal(call(), "0 ", "the result is known again without the folder");
  });
});

test("a source folder that is not pinned, or not whole, is refused and leaves nothing", () => {
  checkout((at, call) => {
    const env = { QUICKJS_SRC: `${at}/source` };
    fs.appendFileSync(`${at}/source/list.h`, "changed");
    assert.match(
      call(env),
      /^1 quickjs: QUICKJS_SRC=\S+ .*is not a release that Sluice is tested with .* 0\.0\.1 or 9\.9\.9 /,
    );
    fs.rmSync(`${at}/source/list.h`);
    assert.match(call(env), /^1 quickjs: QUICKJS_SRC=.* is not a QuickJS-ng source folder/);
    assert.ok(!fs.existsSync(path.join(at, TARGET)));
  });
});

test("the package is fetched from a mirror's pool by its checksum", {
  skip: !fs.existsSync("/usr/lib/apt/apt-helper"),
}, () => {
  checkout((at, call) => {
    const mirror = `file:${at.replaceAll(" ", "%20")}/mirror`;
    assert.match(call({ SLUICE_DEBIAN_MIRROR: mirror }), /^0 quickjs: QuickJS-ng 9\.9\.9 from file:\S+\.deb\n$/);
    assert.deepEqual(fs.readdirSync(path.join(at, TARGET)), FILES);
    assert.deepEqual(fs.readdirSync(path.join(at, "build/quickjs")).sort(), [".lock", "src"]);
  });
});

test("a result that was damaged is made again", () => {
  checkout((at, call) => {
    const env = { QUICKJS_SRC: `${at}/source` };
    call(env);
    fs.appendFileSync(path.join(at, TARGET, "list.h"), "damage");
    assert.match(
      call({}, "--check"),
      /^1 quickjs: build\/quickjs\/src holds no release pinned in native\/quickjs\.lock/,
    );
    assert.match(call(env), /^0 quickjs: QuickJS-ng 9\.9\.9/);
    assert.equal(call({}, "--check"), "0 ");
  });
});

test("a lock line that is not well-formed is found by its number", () => {
  checkout((at, call) => {
    fs.appendFileSync(`${at}/native/quickjs.lock`, `1.0 ${ZEROS} pool/a.deb ${ZEROS}\n`);
    assert.match(call({}, "--check"), /^1 quickjs: native\/quickjs\.lock:4: want VERSION SHA256 POOL_PATH SHA256\n$/);
  });
});

test("the project's own lock is well-formed", () => {
  assert.equal(spawnSync("bash", [path.join(ROOT, "scripts/quickjs.sh"), "--check"], { encoding: "utf8" }).stderr, "");
});
