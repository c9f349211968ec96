import assert from "node:assert/strict";
import { test } from "node:test";
import { OsError } from "../../src/sys/error.ts";
import { sys } from "../../src/sys/node.ts";

/** A new folder beneath the one that the runner made and removes (scripts/unit.ts). */
function folder(name: string): string {
  const base = sys.env("SLUICE_TEST_DIR");
  assert.ok(base !== undefined, "run the unit tests with `make unit`");
  const path = `${base}/${name}`;
  sys.mkdir(path, 0o755);
  return path;
}

test("a file is created, read back and never created twice", () => {
  const dir = folder("create");
  sys.createFile(`${dir}/a`, "hällo\n", 0o640);
  assert.equal(sys.readText(`${dir}/a`, 100), "hällo\n");
  const stat = sys.stat(`${dir}/a`);
  assert.equal(stat?.kind, "file");
  assert.equal(stat?.size, 7);
  assert.equal((stat?.mode ?? 0) & 0o700, 0o600);
  assert.throws(() => sys.createFile(`${dir}/a`, "", 0o600), { name: "OsError", code: "EEXIST" });
});

test("a file larger than the limit is refused, one of exactly the limit is read", () => {
  const dir = folder("limit");
  sys.createFile(`${dir}/a`, "12345", 0o600);
  assert.equal(sys.readText(`${dir}/a`, 5), "12345");
  assert.throws(() => sys.readText(`${dir}/a`, 4), { name: "OsError", code: "EFBIG" });
});

test("a file of /proc, which says that it has no size, is read whole", () => {
  assert.match(sys.readText("/proc/self/status", 65_536), /^Name:.*\nUid:/s);
  assert.throws(() => sys.readText("/proc/self/status", 10), { code: "EFBIG" });
});

test("a part of a file is read as bytes, as far as the file goes", () => {
  const dir = folder("bytes");
  sys.createFile(`${dir}/a`, "hä\0lo\n", 0o600);
  assert.equal(sys.readBytes(`${dir}/a`, 0, 100), "h\xc3\xa4\0lo\n");
  assert.equal(sys.readBytes(`${dir}/a`, 2, 3), "\xa4\0l");
  assert.equal(sys.readBytes(`${dir}/a`, 6, 2 ** 52), "\n");
  assert.equal(sys.readBytes(`${dir}/a`, 7, 10), "");
  assert.equal(sys.readBytes(`${dir}/a`, 2 ** 52, 10), "");
  assert.equal(sys.readBytes("/bin/sh", 0, 4), "\x7fELF");
  assert.throws(() => sys.readBytes(`${dir}/a`, -1, 1), { name: "OsError", code: "EINVAL" });
  assert.throws(() => sys.readBytes(`${dir}/a`, 0, -1), { code: "EINVAL" });
  assert.throws(() => sys.readBytes("/dev/null", 0, 1), { code: "EINVAL" });
  assert.throws(() => sys.readBytes(dir, 0, 1), { code: "EINVAL" });
  assert.throws(() => sys.readBytes("/nonexistent", 0, 1), { code: "ENOENT", syscall: "open", path: "/nonexistent" });
});

test("folders and devices are not read as text", () => {
  assert.throws(() => sys.readText("/", 10), { code: "EINVAL" });
  assert.throws(() => sys.readText("/dev/null", 10), { code: "EINVAL" });
});

test("an empty file and a byte order mark are text as they are", () => {
  const dir = folder("empty");
  sys.createFile(`${dir}/a`, "", 0o600);
  sys.createFile(`${dir}/b`, "\ufeffx", 0o600);
  assert.equal(sys.readText(`${dir}/a`, 10), "");
  assert.equal(sys.readText(`${dir}/b`, 10), "\ufeffx");
});

test("what is not UTF-8 is refused", () => {
  // Memory of our own process, as a file that is surely not text: its executable.
  assert.throws(() => sys.readText("/bin/sh", 64 << 20), { code: "EILSEQ" });
});

test("a missing file has no stat; reading it names call and path", () => {
  assert.equal(sys.stat("/nonexistent/x"), undefined);
  assert.equal(sys.lstat("/etc/passwd/x"), undefined);
  assert.equal(sys.list("/nonexistent"), undefined);
  assert.throws(() => sys.readText("/nonexistent", 10), { code: "ENOENT", syscall: "open", path: "/nonexistent" });
});

test("a NUL in a path is EINVAL, never a shorter path", () => {
  for (const call of [
    () => sys.readText("/etc/passwd\0x", 1 << 20),
    () => sys.stat("/etc\0x"),
    () => sys.list("/etc\0x"),
    () => sys.createFile("/tmp/\0x", "", 0o600),
    () => sys.rename("/nonexistent", "/x\0y"),
    () => sys.unlink("/nonexistent\0"),
  ]) {
    assert.throws(call, { name: "OsError", code: "EINVAL" });
  }
});

test("device nodes have their numbers", () => {
  const stat = sys.stat("/dev/null");
  assert.equal(stat?.kind, "char");
  assert.equal(stat?.major, 1);
  assert.equal(stat?.minor, 3);
});

test("a stamp changes with the content, and is the same for an untouched file", () => {
  const dir = folder("stamp");
  sys.createFile(`${dir}/a`, "1", 0o600);
  const before = sys.stat(`${dir}/a`)?.stamp;
  assert.equal(sys.stat(`${dir}/a`)?.stamp, before);
  sys.appendFile(`${dir}/a`, "2", 0o600);
  assert.notEqual(sys.stat(`${dir}/a`)?.stamp, before);
  assert.equal(sys.readText(`${dir}/a`, 10), "12");
});

test("the clock and a new file's change time agree", () => {
  const dir = folder("clock");
  const before = sys.now();
  sys.createFile(`${dir}/a`, "", 0o600);
  const ctime = sys.stat(`${dir}/a`)?.ctimeMs ?? 0;
  assert.ok(ctime >= before - 50 && ctime <= sys.now(), `${before} <= ${ctime}`);
});

test("a folder is listed by name, with kinds", () => {
  const dir = folder("list");
  sys.createFile(`${dir}/b`, "", 0o600);
  sys.createFile(`${dir}/a`, "", 0o600);
  sys.mkdir(`${dir}/c`, 0o700);
  assert.deepEqual(sys.list(dir), [
    { name: "a", kind: "file" },
    { name: "b", kind: "file" },
    { name: "c", kind: "dir" },
  ]);
});

test("the stamps of many entries are those of their stats, and of missing ones there is none", () => {
  const dir = folder("many");
  sys.createFile(`${dir}/a`, "xyz", 0o600);
  const stamp = sys.stat(`${dir}/a`)?.stamp;
  assert.deepEqual(sys.stamps(dir, ["a", "gone", "a"]), [stamp, "", stamp]);
  assert.deepEqual(sys.stamps(dir, ["gone"]), [""]);
  assert.deepEqual(sys.stamps(dir, []), []);
});

test("a folder is listed in the order of bytes, whatever the language thinks of its names", () => {
  const dir = folder("order");
  const names = ["B", "a", "a.json", "a-", "\u{1f600}", "\uffee", "é"];
  for (const name of names) sys.createFile(`${dir}/${name}`, "", 0o600);
  assert.deepEqual(
    sys.list(dir)?.map((entry) => entry.name),
    ["B", "a", "a-", "a.json", "é", "\uffee", "\u{1f600}"],
  );
});

test("mode, rename and unlink do what they say", () => {
  const dir = folder("ops");
  sys.createFile(`${dir}/a`, "a", 0o600);
  sys.createFile(`${dir}/b`, "b", 0o600);
  sys.chmod(`${dir}/a`, 0o644);
  assert.equal(sys.stat(`${dir}/a`)?.mode, 0o644);
  const own = sys.stat(`${dir}/a`);
  sys.chown(`${dir}/a`, own?.uid ?? 0, own?.gid ?? 0);
  sys.rename(`${dir}/a`, `${dir}/b`);
  assert.equal(sys.readText(`${dir}/b`, 10), "a");
  sys.unlink(`${dir}/b`);
  assert.equal(sys.lstat(`${dir}/b`), undefined);
  assert.throws(() => sys.unlink(`${dir}/b`), { code: "ENOENT", syscall: "unlink" });
  assert.throws(() => sys.mkdir(dir, 0o700), { code: "EEXIST" });
});

test("another root holds paths and links beneath it", () => {
  const dir = folder("root");
  sys.mkdir(`${dir}/etc`, 0o755);
  sys.createFile(`${dir}/etc/passwd`, "inside", 0o644);
  const files = sys.under(dir);
  assert.equal(files.readText("/etc/passwd", 100), "inside");
  assert.equal(files.readBytes("/etc/passwd", 2, 3), "sid");
  assert.equal(files.readText("/../../../../etc/passwd", 100), "inside");
  assert.equal(files.stat("/etc/hostname-that-is-not-there"), undefined);
  assert.deepEqual(files.list("/etc"), [{ name: "passwd", kind: "file" }]);
  assert.deepEqual(files.stamps("/etc", ["passwd"]), [files.stat("/etc/passwd")?.stamp]);
});

test("links under another root resolve beneath it", () => {
  // /proc/self/root is a link to the real root; as a root of its own, /proc shows that such a jump is not taken.
  assert.throws(() => sys.under("/proc").readText("/self/root/etc/passwd", 1 << 20), OsError);
  assert.match(sys.under("/proc").readText("/self/comm", 100), /\w/);
  assert.equal(sys.under("/proc").lstat("/self")?.kind, "link");
  assert.match(sys.under("/proc").readLink("/self"), /^\d+$/);
});

test("readLink of what is no link is EINVAL", () => {
  assert.throws(() => sys.readLink("/etc"), { code: "EINVAL", syscall: "readlink" });
});

test("SHA-256 has the values of FIPS 180-4, at every length around a block's end and beyond ASCII", () => {
  const table: [string, string][] = [
    ["", "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"],
    ["abc", "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"],
    ["é€😀", "df9226927fd572c1ee66eec85de1bb139497614899f36e4e90474cb71f6ef9d0"],
    ["a".repeat(1_000_000), "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0"],
  ];
  for (const [text, hash] of table) assert.equal(sys.sha256(text), hash);
  let chain = "";
  for (let length = 50; length < 140; length++) chain = sys.sha256(chain + "x".repeat(length));
  assert.equal(chain, "ddcc589c6020bff3c2f62a871755f47adb38df749eb9f0ff6f7207810b71c98b");
});

test("where a JSON object or array ends is found past strings, escapes and nesting, or not at all", () => {
  const find = sys.jsonEnd;
  if (find === undefined) return; // under Node there is no need of it
  const table: [string, number, number][] = [
    ["{}", 0, 2],
    ["[[],{}] ,1", 0, 7],
    ['{"a":"}]\\"","b":[1]},"c"', 0, 20],
    ['x{"a":1}', 1, 8],
    ['{"a":"\\\\"}', 0, 10],
    ["{", 0, -1],
    ['{"a', 0, -1],
    ['{"a\\', 0, -1],
    ["[]", 2, -1],
    ["[]", -1, -1],
    ['{"a":"é"}', 0, -1],
    ['{"a":"\u4e00"}', 0, -1],
    ["[".repeat(100_000) + "]".repeat(100_000), 0, 200_000],
  ];
  for (const [text, start, end] of table) assert.equal(find(text, start), end, text.slice(0, 40));
});

test("the parts of a JSON object or array are found, or none", () => {
  const find = sys.jsonParts;
  if (find === undefined) return; // under Node there is no need of it
  const table: [string, number, number[] | undefined][] = [
    ["{}", 0, [2]],
    [" [ ] ", 1, [4]],
    ['{"a":1,"b" : "x,]" }', 0, [1, 4, 5, 6, 7, 10, 13, 18, 20]],
    ['[-1.5e3,true ,{"a":[]}, "\\""\n]', 0, [1, 7, 8, 12, 14, 22, 24, 28, 30]],
    ["[[1],2]", 1, [2, 3, 4]],
    ["{", 0, undefined],
    ['{"a"', 0, undefined],
    ['{"a":', 0, undefined],
    ["[1", 0, undefined],
    ["[1,", 0, undefined],
    ["1", 0, undefined],
    ["", 0, undefined],
    ["[]", 2, undefined],
    ["[]", -1, undefined],
    ['["é"]', 0, undefined],
    [`[${"1,".repeat(1000)}1]`, 0, [...Array.from({ length: 1001 }, (_, i) => [2 * i + 1, 2 * i + 2]).flat(), 2003]],
  ];
  for (const [text, start, parts] of table) assert.deepEqual(find(text, start), parts, text.slice(0, 40));
});

test("what is no loader's cache gets no entries", () => {
  const add = sys.addCached;
  if (add === undefined) return; // under Node there is no need of it
  const libraries = [{ path: "/lib/libx.so.1", flags: 0x303 }];
  const header = "\0".repeat(48);
  const added = { count: 1, strings: 16, text: `\x03\x03\0\0\x4d\0\0\0\x48${"\0".repeat(15)}/lib/libx.so.1\0\0` };
  assert.deepEqual(add(header, 0, libraries), added);
  assert.deepEqual(add(header, 0, []), { count: 0, strings: 0, text: "" });
  for (const [bytes, count] of [
    ["", 0],
    [header, 1],
    [header, -1],
    [header, 2 ** 53],
    [`${header}\u0100`, 0],
    [`${header}${"\0".repeat(24)}`, 1], // its strings would be in the header
  ] as const) {
    assert.equal(add(bytes, count, libraries), undefined);
  }
});

/** Whether the implementation has a call that Node lacks. */
function has(call: () => unknown): boolean {
  try {
    call();
    return true;
  } catch (thrown) {
    if (thrown instanceof OsError && thrown.code === "ENOTSUP") return false;
    throw thrown;
  }
}

test("a program is run with these arguments and this environment only, and its output and exit code come back", () => {
  const run = (script: string, limit = 1000, ms = 10_000) =>
    sys.capture("/bin/sh", ["-c", script, "name", "a b", ""], ["A=1", "B=x=y"], limit, ms);
  assert.deepEqual(run('echo "$0|$1|$2|$#|$A|$B|$HOME"'), { code: 0, out: "name|a b||2|1|x=y|\n" });
  assert.deepEqual(run("exit 7"), { code: 7, out: "" });
  assert.deepEqual(run("echo partly; kill -TERM $$"), { code: 143, out: "partly\n" });
  assert.deepEqual(run("cat; echo not seen >&2"), { code: 0, out: "" });
  assert.deepEqual(run("printf 'a\\377b\\303\\244'"), { code: 0, out: "a\ufffdb\u00e4" });
  assert.equal(run("i=0; while [ $i -lt 3000 ]; do echo 0123456789; i=$((i+1)); done", 1 << 20).out.length, 33_000);
  assert.equal(run("printf 12345", 5).out, "12345");
  assert.throws(() => run("printf 123456", 5), { name: "OsError", code: "EFBIG" });
  assert.throws(() => sys.capture("/nonexistent", [], [], 10, 1000), { code: "ENOENT", syscall: "execve" });
  assert.throws(() => sys.capture("/etc/passwd", [], [], 10, 1000), { code: "EACCES", path: "/etc/passwd" });
  assert.throws(() => sys.capture("/bin/sh", ["a\0b"], [], 10, 1000), { code: "EINVAL" });
});

test("a program that takes too long is killed, and what it started with it", () => {
  const dir = folder("capture");
  const start = sys.now();
  const script = `(sleep 1; echo > ${dir}/lives) & echo started; sleep 30`;
  assert.throws(() => sys.capture("/bin/sh", ["-c", script], ["PATH=/bin:/usr/bin"], 100, 200), { code: "ETIMEDOUT" });
  assert.ok(sys.now() - start < 5000);
  if (sys.jsonEnd === undefined) return; // Node kills the program alone
  sys.sleep(1500);
  assert.equal(sys.stat(`${dir}/lives`), undefined);
});

test("a program that leaves another one behind with its output open is not waited for beyond its own end", () => {
  if (sys.jsonEnd === undefined) return; // Node waits
  const start = sys.now();
  const ended = sys.capture("/bin/sh", ["-c", "sleep 4 & echo done"], ["PATH=/bin:/usr/bin"], 100, 15_000);
  assert.deepEqual(ended, { code: 0, out: "done\n" });
  assert.ok(sys.now() - start < 3500);
});

test("sleep takes its time", () => {
  const start = sys.now();
  sys.sleep(30);
  sys.sleep(0);
  assert.ok(sys.now() - start >= 29);
});

test("a lock keeps others out until it is let go, and a program that is run does not inherit it", () => {
  const dir = folder("lock");
  const path = `${dir}/lock`;
  sys.lock(path)();
  assert.deepEqual([sys.stat(path)?.mode, sys.stat(path)?.size], [0o600, 0]);
  const tries = () => sys.capture("/bin/sh", ["-c", `flock -n ${path} true`], ["PATH=/bin:/usr/bin"], 10, 5000).code;
  const release = sys.lock(path);
  assert.equal(tries(), 1);
  sys.capture("/bin/sh", ["-c", "sleep 5 > /dev/null &"], ["PATH=/bin:/usr/bin"], 10, 5000);
  release();
  release();
  assert.equal(tries(), 0);
  const again = sys.lock(path);
  again();
  assert.throws(() => sys.lock(`${dir}/no/lock`), { code: "ENOENT" });
  sys.tree(dir).symlink("lock", "/link");
  assert.throws(() => sys.lock(`${dir}/link`), { code: "ELOOP" });
});

test("in another tree a link is made, kept where it is right, and put in place of a file or a link", () => {
  const dir = folder("tree-link");
  const tree = sys.tree(dir);
  tree.mkdirs("/usr/lib", 0o755);
  tree.mkdirs("/usr/lib", 0o755);
  tree.mkdirs("/usr/lib/a/b", 0o700);
  assert.equal(tree.stat("/usr/lib/a/b")?.mode, 0o700);
  tree.symlink("libx.so.1.2", "/usr/lib/libx.so.1");
  const made = tree.lstat("/usr/lib/libx.so.1");
  assert.deepEqual([made?.kind, tree.readLink("/usr/lib/libx.so.1")], ["link", "libx.so.1.2"]);
  tree.symlink("libx.so.1.2", "/usr/lib/libx.so.1");
  assert.equal(tree.lstat("/usr/lib/libx.so.1")?.stamp, made?.stamp);
  tree.symlink("libx.so.1.23", "/usr/lib/libx.so.1");
  assert.equal(tree.readLink("/usr/lib/libx.so.1"), "libx.so.1.23");
  sys.createFile(`${dir}/usr/lib/file`, "x", 0o600);
  tree.symlink("/a/bs\u00f6lute", "/usr/lib/file");
  assert.equal(tree.readLink("/usr/lib/file"), "/a/bs\u00f6lute");
  assert.throws(() => tree.symlink("x", "/usr/lib"), { name: "OsError", code: "EISDIR" });
  assert.throws(() => tree.symlink("x", "/usr/none/x"), { code: "ENOENT" });
  for (const path of ["", "/", "/usr/..", "/usr/.", "/usr/"]) {
    assert.throws(() => tree.symlink("x", path), { code: "EINVAL" }, path);
  }
  assert.deepEqual(
    tree.list("/usr/lib")?.map((entry) => entry.name),
    ["a", "file", "libx.so.1"],
  );
});

test("in another tree the links of a folder are made at once, those that lead to something, up to one that fails", () => {
  const dir = folder("tree-links");
  const tree = sys.tree(dir);
  tree.mkdirs("/lib/folder", 0o755);
  tree.symlink("lib", "/way");
  for (const name of ["a", "b", "file", "right"]) tree.writeBytes(`/lib/${name}`, name, 0o644);
  tree.symlink("right", "/lib/kept");
  tree.symlink("/lib/a", "/lib/absolute");
  tree.symlink("/etc/passwd", "/lib/nowhere");
  tree.symlink("loop", "/lib/loop");
  const kept = tree.lstat("/lib/kept")?.stamp;
  const names = ["new", "file", "kept", "a", "none", "way", "passwd", "round"];
  const targets = ["a", "b", "right", "a", "missing", "absolute", "nowhere", "loop"];
  assert.deepEqual(tree.links("/way", names, targets), [true, true, true, true, false, true, false, false]);
  assert.deepEqual(
    ["new", "file", "kept", "way"].map((name) => tree.readLink(`/lib/${name}`)),
    ["a", "b", "right", "absolute"],
  );
  assert.equal(tree.lstat("/lib/kept")?.stamp, kept);
  assert.equal(tree.readText("/lib/a", 9), "a");
  const failing = [
    ["one", "folder", "two"],
    ["a", "a", "a"],
  ] as const;
  assert.throws(() => tree.links("/lib", ...failing), { code: "EISDIR", path: "/lib/folder" });
  for (const name of ["", ".", "..", "folder/x", "../x"]) {
    assert.throws(() => tree.links("/lib", [name], ["a"]), { name: "OsError", code: "EINVAL" }, name);
    assert.throws(() => tree.links("/lib", ["x"], [name]), { name: "OsError", code: "EINVAL" }, name);
  }
  assert.throws(() => tree.links("/none", ["x"], ["x"]), { code: "ENOENT", path: "/none" });
  assert.throws(() => tree.links("/lib/file/x", ["x"], ["x"]), { name: "OsError" });
  assert.deepEqual(
    tree.list("/lib")?.map((entry) => entry.name),
    ["a", "absolute", "b", "file", "folder", "kept", "loop", "new", "nowhere", "one", "right", "way"],
  );
  assert.deepEqual(
    tree.list("/")?.map((entry) => entry.name),
    ["lib", "way"],
  );
});

test("in another tree a file is replaced in one step, byte by byte, and keeps its owner and mode", () => {
  const dir = folder("tree-file");
  const tree = sys.tree(dir);
  const bytes = Array.from({ length: 256 }, (_, i) => String.fromCharCode(i)).join("");
  tree.writeBytes("/a", bytes, 0o644);
  assert.equal(tree.readBytes("/a", 0, 1000), bytes);
  assert.equal(tree.stat("/a")?.mode, 0o644);
  sys.chmod(`${dir}/a`, 0o640);
  if (sys.euid === 0) sys.chown(`${dir}/a`, 12, 34);
  const before = tree.stat("/a");
  tree.writeBytes("/a", "new", 0o600);
  const after = tree.stat("/a");
  assert.deepEqual([after?.mode, after?.uid, after?.gid], [0o640, before?.uid, before?.gid]);
  assert.equal(tree.readText("/a", 10), "new");
  tree.symlink("a", "/b");
  tree.writeBytes("/b", "in the link's place", 0o600);
  assert.equal(tree.readText("/a", 10), "new");
  assert.deepEqual([tree.lstat("/b")?.kind, tree.lstat("/b")?.mode], ["file", 0o600]);
  assert.throws(() => tree.writeBytes("/a", "\u0100", 0o644), { name: "OsError", code: "EINVAL" });
  assert.throws(() => tree.writeBytes("/a", "\ud800", 0o644), { code: "EINVAL" });
  tree.mkdirs("/d/e", 0o755);
  assert.throws(() => tree.writeBytes("/d", "", 0o644), { code: "EISDIR" });
  assert.deepEqual(
    tree.list("/")?.map((entry) => entry.name),
    ["a", "b", "d"],
  );
});

test("a real path has no links and no steps back", () => {
  const dir = sys.realPath(folder("real"));
  sys.mkdir(`${dir}/a`, 0o755);
  sys.tree(dir).symlink("a/../a", "/b");
  assert.equal(sys.realPath(`${dir}/./b//../b`), `${dir}/a`);
  assert.throws(() => sys.realPath(`${dir}/none`), { name: "OsError", code: "ENOENT" });
});

test("through a copy of its mounts a tree is the same, and what is written there is in it", () => {
  const dir = folder("copy");
  if (sys.euid !== 0 || !has(() => sys.writableTree(dir))) return; // needs CAP_SYS_ADMIN
  const tree = sys.writableTree(dir);
  tree.mkdirs("/a/b", 0o755);
  tree.symlink("/a/b", "/link");
  tree.writeBytes("/link/file", "text", 0o644);
  assert.equal(sys.readText(`${dir}/a/b/file`, 10), "text");
  assert.equal(tree.readText("/link/file", 10), "text");
  assert.throws(() => sys.writableTree(`${dir}/none`), { code: "ENOENT", syscall: "open_tree" });
});

test("what is written into another tree stays beneath its root, whatever its links say", () => {
  const dir = folder("tree-hostile");
  const outside = folder("tree-outside");
  sys.mkdir(`${dir}/etc`, 0o755);
  const tree = sys.tree(dir);
  tree.symlink(outside, "/absolute");
  tree.symlink("../../../../../../etc", "/up");
  tree.symlink("loop", "/loop");
  assert.throws(() => tree.writeBytes("/absolute/x", "x", 0o644), { code: "ENOENT" });
  assert.throws(() => tree.symlink("x", "/absolute/x"), { code: "ENOENT" });
  assert.throws(() => tree.writeBytes("/loop/x", "x", 0o644), { code: "ELOOP" });
  assert.throws(() => tree.mkdirs("/absolute/x", 0o755), { code: "ENOENT" });
  tree.writeBytes("/up/x", "inside", 0o644);
  tree.writeBytes("/../../y", "inside", 0o644);
  assert.equal(sys.readText(`${dir}/etc/x`, 100), "inside");
  assert.equal(sys.readText(`${dir}/y`, 100), "inside");
  tree.mkdirs(`${outside}/x`, 0o755);
  tree.writeBytes("/absolute/x/z", "inside", 0o644);
  assert.equal(sys.readText(`${dir}${outside}/x/z`, 100), "inside");
  assert.deepEqual(sys.list(outside), []);
});
