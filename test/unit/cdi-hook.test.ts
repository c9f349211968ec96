import assert from "node:assert/strict";
import { test } from "node:test";
import { cdiHook } from "../../src/hook/cdi-hook.ts";
import { parseLdCache } from "../../src/host/ld-cache.ts";
import { SluiceError } from "../../src/sys/error.ts";
import { elfLibrary, ldCache } from "../fixtures/hosts/elf.ts";
import { binary, dir, fifo, file, link, type MemorySys, memory, type Tree } from "../support/memory-files.ts";

const LIB = "/usr/lib/x86_64-linux-gnu";
const ROOT = "/bundle/rootfs";
const ELF = binary(elfLibrary({ soname: "libcuda.so.1", bits: 64, machine: "x86_64" }));
const CACHE = ldCache([{ name: "libc.so.6", path: "/lib/x86_64-linux-gnu/libc.so.6", machine: "x86_64" }]);
const DRIVER = ["--driver", "580.65.06"];
const CUDA = [...DRIVER, "--library", `${LIB}/libcuda.so.580.65.06=libcuda.so.1`];

/** What an image like Debian's has, and the driver's library as it was mounted. */
const IMAGE: Tree = {
  "/etc/ld.so.cache": binary(CACHE),
  "/etc/ld.so.conf.d/libc.conf": "/usr/local/lib\n",
  "/lib64/ld-linux-x86-64.so.2": ELF,
  [`${LIB}/libc.so.6`]: ELF,
  [`${LIB}/libcuda.so.580.65.06`]: ELF,
};

/** The machine's mounts, with a root that the engine has mounted so, and the runtime read-only over it. */
function mountedBy(engine: "rw" | "ro", place = ROOT): Tree {
  const [first, last] = [
    "20 1 254:0 / / rw,relatime - ext4 /dev/sda rw",
    "32 31 0:50 / /bundle/rootfs/x rw - proc none rw",
  ];
  const mine = `30 20 0:40 / ${place} ${engine},relatime - overlay none rw\n31 30 0:40 / ${place} ro - overlay none rw`;
  return { "/proc/self/mountinfo": `${first}\n${mine}\n${last}\n` };
}

function container(image: Tree, args: readonly string[], config = `{"ociVersion":"1.0.2","root":{"path":"rootfs"}}`) {
  const tree: Record<string, Tree[string]> = { "/bundle/config.json": config, [ROOT]: dir(), ...mountedBy("rw") };
  for (const [path, node] of Object.entries(image)) tree[ROOT + path] = node;
  const sys = memory(tree);
  sys.args.push("cdi-hook", ...args);
  sys.input = JSON.stringify({ ociVersion: "1.0.2", id: "c1", status: "creating", pid: 7, bundle: "/bundle" });
  return sys;
}

/** Runs the hook, which must not fail. @returns what it said */
function succeed(sys: MemorySys): string {
  assert.equal(cdiHook(sys), 0, sys.errors);
  return sys.errors;
}

function refusal(sys: MemorySys): SluiceError {
  try {
    cdiHook(sys);
  } catch (thrown) {
    if (thrown instanceof SluiceError) return thrown;
    throw thrown;
  }
  return assert.fail(`it was done: ${sys.errors}`) as never;
}

/** The names in the container's cache, each with its path. */
function cached(sys: MemorySys): string[] {
  const cache = parseLdCache(sys.readBytes(`${ROOT}/etc/ld.so.cache`, 0, 1 << 20));
  return (cache ?? []).map(({ name, path }) => `${name} ${path}`);
}

const linkAt = (sys: MemorySys, path: string) => sys.readLink(ROOT + path);
const CONFIGURATION = `${ROOT}/etc/ld.so.conf.d/00-sluice.conf`;

test("a library is linked to its SONAME, is in the loader's cache, and its folder in the loader's settings", () => {
  const sys = container(IMAGE, CUDA);
  assert.equal(succeed(sys), "");
  assert.equal(linkAt(sys, `${LIB}/libcuda.so.1`), "libcuda.so.580.65.06");
  assert.deepEqual(cached(sys), [`libcuda.so.1 ${LIB}/libcuda.so.1`, "libc.so.6 /lib/x86_64-linux-gnu/libc.so.6"]);
  assert.equal(sys.text(CONFIGURATION), `${LIB}\n`);
});

/** A container whose runtime has its root as working folder, and the driver's library mounted there from the machine. */
function withRootAsFolder(mountPoint: string, mounted = true) {
  const sys = container({ ...IMAGE, [mountPoint]: ELF }, CUDA);
  const library = `${LIB}/libcuda.so.580.65.06`;
  sys.put(library, ELF);
  if (mounted) sys.bind(library, `${ROOT}${mountPoint}`);
  sys.folder = ROOT;
  return sys;
}

test("where the working folder is the root, with the driver mounted in it, the state is not read", () => {
  const sys = withRootAsFolder(`${LIB}/libcuda.so.580.65.06`);
  sys.input = "nothing that is a state";
  assert.equal(succeed(sys), "");
  assert.equal(linkAt(sys, `${LIB}/libcuda.so.1`), "libcuda.so.580.65.06");
});

test("a working folder that only looks like the root is not taken for it", () => {
  const elsewhere = withRootAsFolder(`${LIB}/libcuda.so.580.65.06`, false); // a file of the image's own
  const unmounted = withRootAsFolder("/opt/libcuda.so");
  const machine = withRootAsFolder(`${LIB}/libcuda.so.580.65.06`);
  machine.folder = "/";
  for (const sys of [elsewhere, unmounted, machine]) {
    sys.input = "nothing that is a state";
    assert.equal(refusal(sys).code, "E_HOOK_STATE");
  }
});

test("a second run, as for a container that is started again, changes nothing", () => {
  const sys = container(IMAGE, [...CUDA, "--link", `${LIB}/libcuda.so=libcuda.so.1`]);
  succeed(sys);
  const stamps = () =>
    ["/etc/ld.so.cache", "/etc/ld.so.conf.d/00-sluice.conf", `${LIB}/libcuda.so.1`, `${LIB}/libcuda.so`].map(
      (path) => sys.lstat(ROOT + path)?.stamp,
    );
  const before = stamps();
  sys.clock += 60_000;
  assert.equal(succeed(sys), "");
  assert.deepEqual(stamps(), before);
  assert.equal(sys.count("writeBytes"), 2);
});

test("a link to another version of the driver is replaced", () => {
  const sys = container({ ...IMAGE, [`${LIB}/libcuda.so.1`]: link("libcuda.so.550.54.14") }, CUDA);
  succeed(sys);
  assert.equal(linkAt(sys, `${LIB}/libcuda.so.1`), "libcuda.so.580.65.06");
});

test("a library that was not mounted is neither linked nor cached, and a container without any is left alone", () => {
  const args = [...CUDA, "--library", `${LIB}/libnvcuvid.so.580.65.06=libnvcuvid.so.1`];
  const sys = container(IMAGE, args);
  succeed(sys);
  assert.equal(sys.lstat(`${ROOT}${LIB}/libnvcuvid.so.1`), undefined);
  assert.equal(cached(sys).length, 2);
  const none = container({ "/etc/ld.so.cache": binary(CACHE) }, args);
  assert.equal(succeed(none), "");
  assert.equal(none.count("writeBytes") + none.count("symlink") + none.count("mkdirs"), 0);
});

test("libraries and links of one folder may stand in one argument", () => {
  const image = { ...IMAGE, [`${LIB}/libnvidia-ml.so.580.65.06`]: ELF };
  const sys = container(image, [
    ...DRIVER,
    ...[
      "--library",
      `${LIB}/libcuda.so.580.65.06=libcuda.so.1:libgone.so.580.65.06=libgone.so.1:libnvidia-ml.so.580.65.06=libnvidia-ml.so.1`,
    ],
    ...["--link", `${LIB}/libcuda.so=libcuda.so.1:libgone.so=libgone.so.1:libnvidia-ml.so=libnvidia-ml.so.1`],
  ]);
  assert.equal(succeed(sys), "");
  assert.equal(linkAt(sys, `${LIB}/libnvidia-ml.so.1`), "libnvidia-ml.so.580.65.06");
  assert.equal(linkAt(sys, `${LIB}/libnvidia-ml.so`), "libnvidia-ml.so.1");
  const names = cached(sys).map((entry) => entry.split(" ")[0]);
  assert.deepEqual(names, ["libnvidia-ml.so.1", "libnvidia-ml.so", "libcuda.so.1", "libcuda.so", "libc.so.6"]);
  assert.deepEqual(
    sys.names(ROOT + LIB).filter((name) => name.includes("gone")),
    [],
  );
});

test("of several links those that cannot be made are told, and the others made", () => {
  const sys = container(IMAGE, [...CUDA, "--link", `${LIB}/a.so=libcuda.so.1:b.so=libcuda.so.1:c.so=libcuda.so.1`]);
  sys.fail("symlink", `${ROOT}:${LIB}/b.so`, "EACCES");
  assert.match(succeed(sys), /^sluice: [^\n]*\/b\.so" is not linked: [^\n]*EACCES\n$/);
  assert.deepEqual(
    cached(sys)
      .map((entry) => entry.split(" ")[0])
      .filter((name) => name !== "libc.so.6"),
    ["libcuda.so.1", "c.so", "a.so"],
  );
});

test("a library whose file has its SONAME needs no link, and is cached", () => {
  const sys = container({ ...IMAGE, [`${LIB}/libnvidia-api.so.1`]: ELF }, [
    ...DRIVER,
    "--library",
    `${LIB}/libnvidia-api.so.1=libnvidia-api.so.1`,
  ]);
  succeed(sys);
  assert.equal(sys.count("symlink"), 0);
  assert.equal(cached(sys)[0], `libnvidia-api.so.1 ${LIB}/libnvidia-api.so.1`);
});

test("other links are made where they lead to something, in folders that may be missing", () => {
  const sys = container(IMAGE, [
    ...CUDA,
    ...["--link", `${LIB}/libcuda.so=libcuda.so.1`],
    ...["--link", `${LIB}/libnvcuvid.so=libnvcuvid.so.1`],
    ...["--link", `${LIB}/gbm/nvidia-drm_gbm.so=../libcuda.so.1`],
    ...["--link", `/opt/deep/er/libcuda.so=${LIB}/libcuda.so.1`],
    ...["--link", `${LIB}/mine=../../../etc/ld.so.conf.d`],
  ]);
  assert.equal(succeed(sys), "");
  assert.equal(linkAt(sys, `${LIB}/libcuda.so`), "libcuda.so.1");
  assert.equal(linkAt(sys, `${LIB}/gbm/nvidia-drm_gbm.so`), "../libcuda.so.1");
  assert.equal(linkAt(sys, "/opt/deep/er/libcuda.so"), `${LIB}/libcuda.so.1`);
  assert.equal(linkAt(sys, `${LIB}/mine`), "../../../etc/ld.so.conf.d");
  assert.equal(sys.lstat(`${ROOT}${LIB}/libnvcuvid.so`), undefined);
  // Programs ask for libcuda.so too; a driver of GBM is loaded by its path.
  assert.deepEqual(cached(sys).slice(0, 2), [`libcuda.so.1 ${LIB}/libcuda.so.1`, `libcuda.so ${LIB}/libcuda.so`]);
  assert.equal(cached(sys).length, 3);
});

test("in a folder of several processors each library has the flags that its file says", () => {
  const folder = "/usr/lib64";
  const sys = container(
    {
      "/etc/ld.so.cache": binary(CACHE),
      [`${folder}/liba.so.1.1`]: binary(elfLibrary({ bits: 64, machine: "aarch64" })),
      [`${folder}/libb.so.1.1`]: binary(elfLibrary({ bits: 32, machine: "i386" })),
      [`${folder}/libc.so.1.1`]: "no library",
    },
    [...DRIVER, ...["a", "b", "c"].flatMap((x) => ["--library", `${folder}/lib${x}.so.1.1=lib${x}.so.1`])],
  );
  assert.match(succeed(sys), /^sluice: "\/usr\/lib64\/libc\.so\.1" is not in \/etc\/ld\.so\.cache/);
  const cache = parseLdCache(sys.readBytes(`${ROOT}/etc/ld.so.cache`, 0, 1 << 20)) ?? [];
  assert.deepEqual(
    cache.map(({ name, flags }) => [name, flags]),
    [
      ["libc.so.6", 0x303],
      ["libb.so.1", 0x003],
      ["liba.so.1", 0xa03],
    ],
  );
});

test("an image of musl, or without any loader, gets its links and no cache", () => {
  const sys = container({ "/lib/ld-musl-x86_64.so.1": ELF, [`${LIB}/libcuda.so.580.65.06`]: ELF }, CUDA);
  assert.equal(succeed(sys), "");
  assert.equal(linkAt(sys, `${LIB}/libcuda.so.1`), "libcuda.so.580.65.06");
  assert.equal(sys.lstat(`${ROOT}/etc`), undefined);
});

test("an image of glibc without a cache gets one, and /etc where it is missing", () => {
  const sys = container({ "/lib64/ld-linux-x86-64.so.2": ELF, [`${LIB}/libcuda.so.580.65.06`]: ELF }, CUDA);
  assert.equal(succeed(sys), "");
  assert.deepEqual(cached(sys), [`libcuda.so.1 ${LIB}/libcuda.so.1`]);
  assert.equal(sys.stat(`${ROOT}/etc/ld.so.cache`)?.mode, 0o644);
  assert.equal(sys.lstat(CONFIGURATION), undefined);
});

test("a cache that cannot be one is replaced, and it is told", () => {
  for (const [node, told] of [
    [binary("\xff\xfe garbage"), /the image's \/etc\/ld\.so\.cache is damaged, and is replaced/],
    [fifo(), /is not read: .*EINVAL/],
    [binary("\0".repeat((4 << 20) + 1)), /has more than 4194304 bytes, and is not read/],
    [link("ld.so.cache"), /is not read: .*ELOOP/],
  ] as const) {
    const sys = container({ ...IMAGE, "/etc/ld.so.cache": node }, CUDA);
    assert.match(succeed(sys), told);
    assert.deepEqual(cached(sys), [`libcuda.so.1 ${LIB}/libcuda.so.1`]);
  }
});

test("what the image calls /etc/ld.so.cache may be a link to nothing: the cache takes its place", () => {
  const sys = container({ ...IMAGE, "/etc/ld.so.cache": link("/host/etc/ld.so.cache") }, CUDA);
  assert.equal(succeed(sys), "");
  assert.equal(sys.lstat(`${ROOT}/etc/ld.so.cache`)?.kind, "file");
});

test("CUDA's newer user-space half, which an image brings, comes before the driver's", () => {
  const compat = "/usr/local/cuda-13/compat";
  const image: Tree = {
    ...IMAGE,
    "/usr/local/cuda": link("/etc/alternatives/cuda"),
    "/etc/alternatives/cuda": link("/usr/local/cuda-13"),
    [`${compat}/libcuda.so.590.44.01`]: ELF,
    [`${compat}/libcuda.so.1`]: link("libcuda.so.590.44.01"),
    [`${compat}/libcuda.so`]: link("libcuda.so.1"),
    [`${compat}/libnvidia-nvvm.so.4`]: ELF,
    [`${compat}/README`]: "text",
  };
  const sys = container(image, CUDA);
  succeed(sys);
  assert.deepEqual(cached(sys), [
    "libnvidia-nvvm.so.4 /usr/local/cuda/compat/libnvidia-nvvm.so.4",
    "libcuda.so.1 /usr/local/cuda/compat/libcuda.so.1",
    `libcuda.so.1 ${LIB}/libcuda.so.1`,
    "libc.so.6 /lib/x86_64-linux-gnu/libc.so.6",
  ]);
  assert.equal(sys.text(CONFIGURATION), `/usr/local/cuda/compat\n${LIB}\n`);
});

test("CUDA's user-space half of the same or an older major version stays behind the driver's", () => {
  for (const version of ["580.95.05", "550.54.14", "99999999.1", "59x.1"]) {
    const sys = container({ ...IMAGE, [`/usr/local/cuda/compat/libcuda.so.${version}`]: ELF }, CUDA);
    succeed(sys);
    assert.equal(sys.text(CONFIGURATION), `${LIB}\n`, version);
  }
});

test("the driver's parameters are hidden behind the file that is named, where the container has any", () => {
  const args = [...CUDA, "--params", "/run/sluice/cdi/nvidia-params"];
  const image: Tree = { ...IMAGE, "/proc/driver/nvidia/params": "ModifyDeviceFiles: 1\n" };
  const sys = container(image, args);
  sys.put("/run/sluice/cdi/nvidia-params", "ModifyDeviceFiles: 0\n");
  assert.equal(succeed(sys), "");
  assert.equal(sys.text(`${ROOT}/proc/driver/nvidia/params`), "ModifyDeviceFiles: 0\n");
  assert.equal(succeed(container(IMAGE, args)), "");
  const refused = refusal(container(image, args));
  assert.equal(refused.code, "E_HOOK_PARAMS");
  assert.match(refused.message, /nvidia-params" cannot be mounted .*ENOENT; run "sluice cdi generate"/);
});

test("a container whose programs would not find the driver does not start", () => {
  for (const [call, path, code] of [
    ["symlink", `writable ${ROOT}:${LIB}/libcuda.so.1`, "EROFS"],
    ["writableTree", ROOT, "ENOSYS"],
    ["readText", "/proc/self/mountinfo", "ENOENT"],
    ["none", "", ""],
  ] as const) {
    const readOnly = container(IMAGE, CUDA);
    // An image that is mounted read-only may be shared: not even what could be written to is.
    if (call === "none") for (const [at, node] of Object.entries(mountedBy("ro"))) readOnly.put(at, node);
    readOnly.fail("symlink", `${ROOT}:${LIB}/libcuda.so.1`, "EROFS");
    readOnly.fail(call, path, code);
    const link = refusal(readOnly);
    assert.equal(link.code, "E_HOOK_LINK");
    assert.match(link.message, /would not find the driver's .*libcuda\.so\.1.*EROFS; put a layer that can be written/);
  }
  const folder = container({ ...IMAGE, [`${LIB}/libcuda.so.1/x`]: "" }, CUDA);
  assert.match(refusal(folder).message, /EISDIR; look at what the image has there/);
  const elsewhere: Tree = { ...IMAGE, "/opt/driver/libcuda.so.580.65.06": ELF };
  const cache = container(elsewhere, [...DRIVER, "--library", "/opt/driver/libcuda.so.580.65.06=libcuda.so.1"]);
  cache.fail("writeBytes", `${ROOT}:/etc/ld.so.cache`, "ENOSPC");
  assert.equal(refusal(cache).code, "E_HOOK_CACHE");
});

test("a root that is mounted read-only already is changed through a copy of its mounts", () => {
  const sys = container(IMAGE, [...CUDA, "--link", `${LIB}/libcuda.so=libcuda.so.1`]);
  for (const [call, path] of [
    ["symlink", `${LIB}/libcuda.so.1`],
    ["symlink", `${LIB}/libcuda.so`],
    ["writeBytes", "/etc/ld.so.cache"],
    ["writeBytes", "/etc/ld.so.conf.d/00-sluice.conf"],
  ] as const) {
    sys.fail(call, `${ROOT}:${path}`, "EROFS");
  }
  assert.equal(succeed(sys), "");
  assert.equal(linkAt(sys, `${LIB}/libcuda.so.1`), "libcuda.so.580.65.06");
  assert.equal(cached(sys).length, 3);
  assert.equal(sys.count("writableTree"), 1);
});

test("what programs do not need may fail: it is told", () => {
  const sys = container(IMAGE, [...CUDA, "--link", `${LIB}/libcuda.so=libcuda.so.1`]);
  sys.fail("writeBytes", `${ROOT}:/etc/ld.so.cache`, "EACCES");
  sys.fail("writeBytes", `${ROOT}:/etc/ld.so.conf.d/00-sluice.conf`, "ENOSPC");
  sys.fail("symlink", `${ROOT}:${LIB}/libcuda.so`, "EACCES");
  const told = succeed(sys).trimEnd().split("\n");
  assert.equal(told.length, 3);
  assert.match(told[0] ?? "", /libcuda\.so" is not linked: .*EACCES/);
  assert.match(told[1] ?? "", /ld\.so\.cache of the container cannot be written: .*EACCES; programs find/);
  assert.match(told[2] ?? "", /00-sluice\.conf of the container is not written: .*ENOSPC/);
});

test("the root is that of the bundle's config.json, however that is written", () => {
  for (const config of [
    `{"root":{"path":"${ROOT}"}}`,
    `\n{ "process" : {"args":["a\\"root\\":{"],"root":{"path":"/wrong"}},\n  "x": [1, {"root": {}}], "n": -1.5e+3, "t": true,
      "root" : { "readonly": true, "path" : "rootfs" }, "after": null }\n`,
    `{"annotations":{"a":"\\u00e9 é"},"root":{"path":"rootfs"}}`,
  ]) {
    const sys = container(IMAGE, CUDA, config);
    succeed(sys);
    assert.equal(linkAt(sys, `${LIB}/libcuda.so.1`), "libcuda.so.580.65.06");
  }
});

test("a state or a bundle that names no root is refused", () => {
  const states: [string, string][] = [
    ["", "E_HOOK_STATE"],
    ["{", "E_HOOK_STATE"],
    ["null", "E_HOOK_STATE"],
    [`{"bundle":7}`, "E_HOOK_STATE"],
    [`{"bundle":"relative"}`, "E_HOOK_STATE"],
    [`{"bundle":"/none"}`, "E_HOOK_BUNDLE"],
  ];
  for (const [input, code] of states) {
    const sys = container(IMAGE, CUDA);
    sys.input = input;
    assert.equal(refusal(sys).code, code, input);
  }
  for (const config of ["", "{", "[]", "null", "{}", `{"root":null}`, `{"root":{}}`, `{"root":{"path":""}}`]) {
    assert.equal(refusal(container(IMAGE, CUDA, config)).code, "E_HOOK_BUNDLE", config);
  }
});

test("arguments that are not those of a spec of ours are wrong usage, and nothing is done", () => {
  for (const args of [
    [],
    ["--library", `${LIB}/a=b`],
    ["--driver", ""],
    ["--driver", "new"],
    ["--driver", "1", "--driver", "2"],
    [...DRIVER, "--library", "relative=a"],
    [...DRIVER, "--library", `${LIB}/a`],
    [...DRIVER, "--library", `${LIB}/=a`],
    [...DRIVER, "--library", `${LIB}/a=`],
    [...DRIVER, "--library", `${LIB}/a=../a`],
    [...DRIVER, "--library", "/usr/lib\n/etc/a=a"],
    [...DRIVER, "--library", "/usr/lib:/etc/a=a"],
    [...DRIVER, "--link", "/a="],
    [...DRIVER, "--params"],
    [...DRIVER, "--params", "relative"],
    [...DRIVER, "--folder", "/usr/lib"],
    [...DRIVER, "update-ldcache"],
  ]) {
    const sys = container(IMAGE, args);
    assert.equal(cdiHook(sys), 2, args.join(" "));
    assert.match(sys.errors, /^sluice: E_USAGE: .*; usage: sluice cdi-hook --driver VERSION /);
    assert.deepEqual(sys.calls, []);
  }
});

test("called as sluice-cdi-hook it takes the same arguments", () => {
  const sys = container(IMAGE, CUDA);
  sys.args.splice(0, 2, "/usr/bin/sluice-cdi-hook");
  succeed(sys);
  assert.equal(linkAt(sys, `${LIB}/libcuda.so.1`), "libcuda.so.580.65.06");
});

test("a file where a folder belongs is no folder of ours", () => {
  const sys = container({ ...IMAGE, "/etc/ld.so.conf.d": file("x"), [LIB]: file("x") }, CUDA);
  assert.equal(succeed(sys), "");
  assert.equal(sys.text(`${ROOT}/etc/ld.so.conf.d`), "x");
});
