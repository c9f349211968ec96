/*
 * `sluice cdi-hook` in real containers: the loader of a Debian image finds a driver's library by name, under runc and
 * crun, and images without glibc, hostile images and read-only ones come to no harm. And its cache against glibc's own
 * ldconfig, which is the judge of the format.
 */

import assert from "node:assert/strict";
import { execFileSync, spawnSync } from "node:child_process";
import * as fs from "node:fs";
import * as path from "node:path";
import { type TestContext, test } from "node:test";
import { addToLdCache, parseLdCache } from "../../src/host/ld-cache.ts";
import { type ImageName, image } from "../lab/images.ts";
import { type Machine, needsLab, startMachine } from "../lab/machine.ts";
import { refusals } from "../support/hostile.ts";
import { folder, needs } from "../support/machine.ts";
import { DRIVER, ROOT, SLUICE } from "../support/simulated-host.ts";

const options = needsLab();
const local = needs("root", "build", "cc");
const RUNTIMES = ["runc", "crun"] as const;
const TRIPLET = execFileSync("cc", ["-print-multiarch"], { encoding: "utf8" }).trim();
/** Where Debian's loader looks, and where it does not. */
const LIB = `/usr/lib/${TRIPLET}`;
const ELSEWHERE = "/usr/lib64";

/** Loads libraries by name, and says where each was found. */
const LOAD = `#define _GNU_SOURCE
#include <dlfcn.h>
#include <link.h>
#include <stdio.h>
int main(int argc, char **argv)
{
    for (int i = 1; i < argc; i++) {
        void *library = dlopen(argv[i], RTLD_NOW);
        struct link_map *map;

        if (library && !dlinfo(library, RTLD_DI_LINKMAP, &map))
            printf("%s: %s\\n", argv[i], map->l_name);
        else
            printf("%s: not found\\n", argv[i]);
    }
}
`;

interface Scene {
  readonly dir: string;
  readonly rootfs: string;
  /** The driver's library, as it lies on the machine. */
  readonly library: string;
  /** Arguments of the hook that make the library known. */
  readonly args: string[];
  /** Writes config.json, with what is added to runc's template. */
  configure(change?: (config: Bundle) => void): void;
}

/** What the tests change of a config.json. */
interface Bundle {
  root: { readonly?: boolean };
  process: { args: string[]; env: string[]; terminal: boolean; capabilities?: object };
  annotations: Record<string, string>;
  mounts: { destination: string; type: string; source: string; options?: string[] }[];
  linux: { namespaces: { type: string }[]; resources: object };
  hooks?: { createContainer: { path: string; args: string[]; env?: string[]; timeout: number }[] };
}

function unpack(name: ImageName, rootfs: string): void {
  fs.mkdirSync(rootfs, { recursive: true });
  execFileSync("sh", ["-c", 'tar -xOf "$1" layer.tar | tar -x -C "$2"', "sh", image(name), rootfs]);
}

function compile(file: string, source: string, ...flags: string[]): void {
  const text = `${file}.c`;
  fs.writeFileSync(text, source);
  execFileSync("cc", ["-o", file, text, ...flags]);
  fs.rmSync(text);
}

/** A bundle of an image, the driver's library mounted in `where`, and the hook, as a CDI spec brings both. */
function makeScene(dir: string, name: ImageName, where: string): Scene {
  const [rootfs, file] = [path.join(dir, "rootfs"), `libcuda.so.${DRIVER}`];
  unpack(name, rootfs);
  const library = path.join(dir, file);
  const source = fs.readFileSync(path.join(ROOT, "test/fixtures/gpu/libcuda.c"), "utf8");
  compile(library, source, "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1");
  fs.mkdirSync(path.join(rootfs, "usr/bin"), { recursive: true });
  compile(path.join(rootfs, "usr/bin/load"), LOAD, "-ldl");
  const args = ["--driver", DRIVER, "--library", `${where}/${file}=libcuda.so.1`];
  args.push("--link", `${where}/libcuda.so=libcuda.so.1`);
  return {
    dir,
    rootfs,
    library,
    args,
    configure(change) {
      fs.rmSync(path.join(dir, "config.json"), { force: true });
      execFileSync("runc", ["spec"], { cwd: dir });
      const config = JSON.parse(fs.readFileSync(path.join(dir, "config.json"), "utf8")) as Bundle;
      config.process.terminal = false;
      config.root.readonly = false;
      config.process.args = ["load", "libcuda.so.1", "libcuda.so"];
      config.linux.resources = {};
      const options = ["ro", "nosuid", "nodev", "bind"];
      config.mounts.push({ source: library, destination: `${where}/${file}`, type: "bind", options });
      const hook = { path: "/usr/bin/sluice", args: ["sluice", "cdi-hook", ...args], env: ["LC_ALL=C"], timeout: 10 };
      config.hooks = { createContainer: [hook] };
      config.annotations = { "run.oci.hooks.stderr": path.join(dir, "said") }; // crun shows nothing of a hook
      change?.(config);
      fs.writeFileSync(path.join(dir, "config.json"), JSON.stringify(config));
    },
  };
}

/** crun refuses both versions of cgroups at once. */
function machineFor(t: TestContext, runtime: string): Machine {
  return startMachine(t, "trixie", runtime === "crun" ? { cgroups: "v1" } : {});
}

let count = 0;

function start(machine: Machine, runtime: string, scene: Scene) {
  return machine.run(runtime, "run", "--bundle", scene.dir, `hook-${process.pid}-${count++}`);
}

function both(where: string): string {
  return `libcuda.so.1: ${where}/libcuda.so.1\nlibcuda.so: ${where}/libcuda.so.1\n`;
}

/** What stands in a tree: each path with its kind, owner, mode, size, time, link and content. */
function snapshot(dir: string): string {
  const script = `find "$1" -printf '%p %y %U:%G %m %s %T@ %l\\n' | sort; find "$1" -type f -exec sha256sum {} + | sort`;
  return execFileSync("sh", ["-c", script, "sh", dir], { encoding: "utf8" });
}

for (const runtime of RUNTIMES) {
  test(`${runtime}: a Debian image finds the driver's library by its names, wherever it lies`, options, (t) => {
    const machine = machineFor(t, runtime);
    for (const where of [LIB, ELSEWHERE]) {
      const scene = makeScene(path.join(machine.shared, path.basename(where)), "debian", where);
      scene.configure();
      const first = start(machine, runtime, scene);
      assert.deepEqual([first.err, first.out, first.code], ["", both(where), 0]);
      const written = snapshot(scene.rootfs);
      const again = start(machine, runtime, scene);
      assert.deepEqual([again.err, again.out, again.code], ["", both(where), 0]);
      assert.equal(snapshot(scene.rootfs), written, "a second start changed something");
      const listed = spawnSync("chroot", [scene.rootfs, "/sbin/ldconfig", "-p"], { encoding: "utf8" }).stdout;
      assert.match(listed, new RegExp(`^\\tlibcuda\\.so\\.1 \\(libc6,.*\\) => ${where}/libcuda\\.so\\.1$`, "m"));
      assert.match(listed, /^\tlibc\.so\.6 /m);
      // As a package's installation does it in a running container.
      scene.configure((config) => {
        config.process.args = ["sh", "-c", "/sbin/ldconfig && exec load libcuda.so.1 libcuda.so"];
        delete config.process.capabilities;
      });
      assert.equal(start(machine, runtime, scene).out, both(where));
    }
  });

  test(`${runtime}: without the hook the same image does not find it`, options, (t) => {
    const machine = machineFor(t, runtime);
    const scene = makeScene(path.join(machine.shared, "bundle"), "debian", ELSEWHERE);
    scene.configure((config) => delete config.hooks);
    assert.equal(start(machine, runtime, scene).out, "libcuda.so.1: not found\nlibcuda.so: not found\n");
  });

  test(`${runtime}: images of musl and of one static program start, and get no cache of glibc's`, options, (t) => {
    const machine = machineFor(t, runtime);
    for (const name of ["musl", "static"] as const) {
      const scene = makeScene(path.join(machine.shared, name), name, LIB);
      scene.configure((config) => (config.process.args = [name === "musl" ? "/usr/bin/probe" : "/probe", "env"]));
      const r = start(machine, runtime, scene);
      assert.deepEqual([r.err, r.code], ["", 0]);
      assert.equal(fs.existsSync(path.join(scene.rootfs, "etc/ld.so.cache")), false);
      assert.equal(fs.readlinkSync(path.join(scene.rootfs, `${LIB}/libcuda.so.1`)), `libcuda.so.${DRIVER}`);
    }
  });

  test(`${runtime}: with a root that is read-only for the container, the library is found`, options, (t) => {
    const machine = machineFor(t, runtime);
    const scene = makeScene(path.join(machine.shared, "bundle"), "debian", ELSEWHERE);
    scene.configure((config) => (config.root.readonly = true));
    const r = start(machine, runtime, scene);
    assert.deepEqual([r.err, r.out, r.code], ["", both(ELSEWHERE), 0]);
  });

  test(`${runtime}: a root that the engine mounted read-only is refused, unless everything is there`, options, (t) => {
    const machine = machineFor(t, runtime);
    const scene = makeScene(path.join(machine.shared, "bundle"), "debian", LIB);
    fs.mkdirSync(path.join(scene.rootfs, "proc"), { recursive: true });
    scene.configure();
    // The place of the mount must be there for the runtime, which could not make it.
    fs.writeFileSync(path.join(scene.rootfs, `${LIB}/libcuda.so.${DRIVER}`), "");
    const readOnly = () => {
      const script =
        'mount --bind "$1/rootfs" "$1/rootfs" && mount -o remount,ro,bind "$1/rootfs" && exec "$2" run --bundle "$1" "$3"';
      return machine.run("unshare", "-m", "sh", "-c", script, "sh", scene.dir, runtime, `ro-${process.pid}-${count++}`);
    };
    scene.configure((config) => (config.root.readonly = true)); // without, crun lifts it
    const before = snapshot(scene.rootfs);
    const refused = readOnly();
    assert.notEqual(refused.code, 0);
    assert.equal(snapshot(scene.rootfs), before); // it may be an image that others have too
    const said = runtime === "crun" ? fs.readFileSync(path.join(scene.dir, "said"), "utf8") : refused.err;
    assert.match(said, /E_HOOK_LINK: .*libcuda\.so\.1.*EROFS/);
    assert.equal(start(machine, runtime, scene).out, both(LIB));
    assert.equal(readOnly().out, both(LIB));
  });

  test(`${runtime}: what an image says in its environment does not reach the hook`, options, (t) => {
    const machine = machineFor(t, runtime);
    const scene = makeScene(path.join(machine.shared, "bundle"), "debian", LIB);
    const trap = '#include <fcntl.h>\n__attribute__((constructor)) void f(void) { open("/owned", O_CREAT, 0600); }\n';
    compile(path.join(scene.rootfs, "trap.so"), trap, "-shared", "-fPIC");
    const owned = () => [scene.rootfs, machine.dir].some((root) => fs.existsSync(path.join(root, "owned")));
    const withHook = (program: string) => {
      scene.configure((config) => {
        config.process.args = ["/usr/bin/probe", "env"]; // static, so that it loads nothing itself
        config.process.env = ["PATH=/bin", "LD_PRELOAD=/proc/self/cwd/trap.so:/proc/self/cwd/rootfs/trap.so"];
        // As runtimes gave it to a hook without one (CVE-2025-23266).
        const { env } = config.process;
        for (const hook of config.hooks?.createContainer ?? []) Object.assign(hook, { env, path: program });
      });
      return start(machine, runtime, scene);
    };
    withHook("/usr/bin/crun"); // some program that the loader starts
    assert.equal(owned(), true, "the trap does not spring");
    for (const root of [scene.rootfs, machine.dir]) fs.rmSync(path.join(root, "owned"), { force: true });
    const r = withHook("/usr/bin/sluice");
    assert.deepEqual([r.err, r.code, owned()], ["", 0, false]);
    assert.equal(fs.readlinkSync(path.join(scene.rootfs, `${LIB}/libcuda.so.1`)), `libcuda.so.${DRIVER}`);
  });

  test(`${runtime}: in a user namespace the library is found too`, options, (t) => {
    const machine = machineFor(t, runtime);
    const scene = makeScene(path.join(machine.shared, "bundle"), "debian", ELSEWHERE);
    execFileSync("chown", ["-hR", "100000:100000", scene.rootfs]);
    for (let dir = scene.dir; dir !== path.dirname(machine.shared); dir = path.dirname(dir)) fs.chmodSync(dir, 0o755);
    scene.configure((config) => {
      config.linux.namespaces.push({ type: "user" });
      const mapping = [{ containerID: 0, hostID: 100_000, size: 65_536 }];
      Object.assign(config.linux, { uidMappings: mapping, gidMappings: mapping });
      // A namespace without rights over the machine's network cannot have its sysfs.
      config.mounts = config.mounts.filter(({ type }) => !/^(?:sysfs|cgroup)$/.test(type));
    });
    const r = start(machine, runtime, scene);
    assert.deepEqual([r.err, r.out, r.code], ["", both(ELSEWHERE), 0]);
    assert.equal(fs.lstatSync(path.join(scene.rootfs, `${ELSEWHERE}/libcuda.so.1`)).uid, 100_000);
  });
}

/** Runs the hook by itself on a folder as root, in a mount namespace of its own; `after` is a script that runs in it too. */
function runHook(dir: string, args: readonly string[], after = "true") {
  fs.writeFileSync(path.join(dir, "config.json"), JSON.stringify({ root: { path: "rootfs" } }));
  const script = `"$@" < state; code=$?; ${after}; exit $code`;
  fs.writeFileSync(path.join(dir, "state"), JSON.stringify({ id: "x", bundle: dir }));
  const command = ["unshare", "-m", "sh", "-c", script, "sh", SLUICE, "cdi-hook", ...args];
  const r = spawnSync("timeout", ["20", ...command], { cwd: dir, encoding: "utf8" });
  return { code: r.status, out: r.stdout, err: r.stderr };
}

/** A root with the driver's library, and a folder beside it that nobody may touch. */
function makeHostile(t: TestContext): { dir: string; rootfs: string; outside: string } {
  const dir = folder(t);
  const [rootfs, outside] = [path.join(dir, "rootfs"), path.join(dir, "outside")];
  for (const at of [
    `${rootfs}${LIB}`,
    `${rootfs}/etc`,
    `${rootfs}/lib64`,
    `${outside}/ld.so.conf.d`,
    `${outside}/lib`,
  ]) {
    fs.mkdirSync(at, { recursive: true });
  }
  fs.writeFileSync(`${rootfs}${LIB}/libcuda.so.${DRIVER}`, "library");
  fs.writeFileSync(`${rootfs}/lib64/ld-linux-x86-64.so.2`, "loader");
  for (const file of ["ld.so.cache", "ld.so.conf.d/a.conf", `lib/libcuda.so.${DRIVER}`, "params"]) {
    fs.writeFileSync(`${outside}/${file}`, "outside\n");
  }
  return { dir, rootfs, outside };
}

const CUDA = [
  "--driver",
  DRIVER,
  "--library",
  `${LIB}/libcuda.so.${DRIVER}=libcuda.so.1`,
  "--link",
  `${LIB}/libcuda.so=libcuda.so.1`,
];

test("whatever the links of an image say, nothing outside of it is touched, and the hook ends", local, (t) => {
  const up = "../".repeat(20);
  const cases: [name: string, prepare: (scene: { rootfs: string; outside: string }) => void, codes: string[]][] = [
    [
      "/etc leads outside by its absolute path",
      ({ rootfs, outside }) => replace(`${rootfs}/etc`, outside),
      ["E_HOOK_CACHE"],
    ],
    [
      "/etc leads up and outside",
      ({ rootfs, outside }) => replace(`${rootfs}/etc`, `${up}${outside.slice(1)}`),
      ["E_HOOK_CACHE"],
    ],
    ["/etc is a loop", ({ rootfs }) => replace(`${rootfs}/etc`, "etc"), ["E_HOOK_CACHE"]],
    ["/etc is a file", ({ rootfs }) => file(`${rootfs}/etc`), ["E_HOOK_CACHE"]],
    [
      "the cache leads outside",
      ({ rootfs, outside }) => replace(`${rootfs}/etc/ld.so.cache`, `${outside}/ld.so.cache`),
      [],
    ],
    ["the cache is a pipe", ({ rootfs }) => execFileSync("mkfifo", [`${rootfs}/etc/ld.so.cache`]), []],
    ["the cache is a device", ({ rootfs }) => execFileSync("mknod", [`${rootfs}/etc/ld.so.cache`, "c", "1", "5"]), []],
    ["the cache is a folder", ({ rootfs }) => fs.mkdirSync(`${rootfs}/etc/ld.so.cache`), ["E_HOOK_CACHE"]],
    ["the cache has a gigabyte of nothing", ({ rootfs }) => sparse(`${rootfs}/etc/ld.so.cache`, ""), []],
    ["the cache has a gigabyte behind a header", ({ rootfs }) => sparse(`${rootfs}/etc/ld.so.cache`, HEADER), []],
    [
      "the settings lead outside",
      ({ rootfs, outside }) => replace(`${rootfs}/etc/ld.so.conf.d`, `${outside}/ld.so.conf.d`),
      [],
    ],
    [
      "our settings are a link outside",
      ({ rootfs, outside }) => {
        fs.mkdirSync(`${rootfs}/etc/ld.so.conf.d`);
        fs.symlinkSync(`${outside}/ld.so.conf.d/a.conf`, `${rootfs}/etc/ld.so.conf.d/00-sluice.conf`);
      },
      [],
    ],
    ["the library's folder leads outside", ({ rootfs, outside }) => replace(`${rootfs}${LIB}`, `${outside}/lib`), []],
    ["the library's folder leads to its parent", ({ rootfs }) => replace(`${rootfs}${LIB}`, ".."), []],
    [
      "the SONAME leads outside",
      ({ rootfs, outside }) => replace(`${rootfs}${LIB}/libcuda.so.1`, `${outside}/lib/libcuda.so.${DRIVER}`),
      [],
    ],
    [
      "the SONAME is a folder",
      ({ rootfs }) => fs.mkdirSync(`${rootfs}${LIB}/libcuda.so.1/x`, { recursive: true }),
      ["E_HOOK_LINK"],
    ],
    [
      "the library leads outside",
      ({ rootfs, outside }) => replace(`${rootfs}${LIB}/libcuda.so.${DRIVER}`, `${outside}/params`),
      [],
    ],
    [
      "CUDA's folder leads outside",
      ({ rootfs, outside }) => {
        fs.mkdirSync(`${rootfs}/usr/local`, { recursive: true });
        fs.symlinkSync(outside, `${rootfs}/usr/local/cuda`);
        fs.mkdirSync(`${outside}/compat`);
        fs.writeFileSync(`${outside}/compat/libcuda.so.999.1`, "outside\n");
      },
      [],
    ],
    [
      "everything is a loop",
      ({ rootfs }) => {
        for (const at of ["etc", "usr", "proc", "lib64"]) replace(`${rootfs}/${at}`, `../${at}/../${at}`);
      },
      [],
    ],
  ];
  for (const [name, prepare, codes] of cases) {
    const scene = makeHostile(t);
    prepare(scene);
    const before = snapshot(scene.outside);
    const r = runHook(scene.dir, CUDA);
    assert.equal(snapshot(scene.outside), before, name);
    assert.deepEqual([r.err.match(/\bE_\w+(?=:)/g) ?? [], r.code], [codes, codes.length], `${name}: ${r.err}`);
    const left = spawnSync("find", [scene.rootfs, "-name", ".sluice-*"], { encoding: "utf8" }).stdout;
    assert.equal(left, "", name);
  }
});

const HEADER = `glibc-ld.so.cache1.1${"\xff\xff\xff\0"}${"\0".repeat(24)}`;

function replace(at: string, target: string): void {
  fs.rmSync(at, { recursive: true, force: true });
  fs.symlinkSync(target, at);
}

function file(at: string): void {
  fs.rmSync(at, { recursive: true, force: true });
  fs.writeFileSync(at, "");
}

function sparse(at: string, start: string): void {
  fs.writeFileSync(at, start, "latin1");
  fs.truncateSync(at, 1 << 30);
}

test(
  "the driver's parameters are another file for the container, which it cannot write, and only for it",
  local,
  (t) => {
    const { dir, rootfs, outside } = makeHostile(t);
    const [params, mine] = [`${rootfs}/proc/driver/nvidia/params`, path.join(dir, "nvidia-params")];
    fs.mkdirSync(path.dirname(params), { recursive: true });
    fs.writeFileSync(params, "ModifyDeviceFiles: 1\n");
    fs.writeFileSync(mine, "ModifyDeviceFiles: 0\n");
    const args = [...CUDA, "--params", mine];
    const show = `cat rootfs/proc/driver/nvidia/params; grep driver/nvidia /proc/self/mountinfo | cut -d' ' -f6-; (echo >rootfs/proc/driver/nvidia/params) 2>&1 | grep -o 'Read-only.*'`;
    const r = runHook(dir, args, show);
    assert.equal(r.code, 0, r.err);
    const [text, mount = "", refused] = r.out.split("\n");
    assert.deepEqual([text, refused], ["ModifyDeviceFiles: 0", "Read-only file system"]);
    assert.match(mount, /^ro,nosuid,nodev,noexec,\S+ - /); // no "shared:" or "master:": it goes nowhere
    assert.deepEqual(
      [fs.readFileSync(params, "utf8"), fs.readFileSync(mine, "utf8")],
      ["ModifyDeviceFiles: 1\n", "ModifyDeviceFiles: 0\n"],
    );

    // Over what leads outside, it stands inside or nowhere.
    const before = snapshot(outside);
    replace(`${rootfs}/proc/driver`, outside);
    assert.equal(runHook(dir, args).code, 0);
    replace(`${rootfs}/proc`, "proc");
    assert.deepEqual(refusals(runHook(dir, args).err), ["E_HOOK_PARAMS"]);
    assert.equal(snapshot(outside), before);
    fs.rmSync(`${rootfs}/proc`);
    assert.equal(runHook(dir, [...CUDA, "--params", "/no/such"]).code, 0);
    fs.mkdirSync(path.dirname(params), { recursive: true });
    execFileSync("mkfifo", [params]);
    assert.deepEqual(refusals(runHook(dir, args).err), ["E_HOOK_PARAMS"]);
  },
);

test("while somebody swaps folders of the image for links outside, nothing outside is touched", local, (t) => {
  const { dir, rootfs, outside } = makeHostile(t);
  const before = snapshot(outside);
  const swap = `
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <unistd.h>
int main(int argc, char **argv)
{
    (void)argc;
    for (;;)
        for (int i = 1; argv[i]; i += 2)
            renameat2(AT_FDCWD, argv[i], AT_FDCWD, argv[i + 1], RENAME_EXCHANGE);
}
`;
  const program = path.join(dir, "swap");
  compile(program, swap);
  fs.symlinkSync(outside, `${rootfs}/etc2`);
  fs.symlinkSync(`${outside}/lib`, `${rootfs}${LIB}2`);
  const script = `"$1" "$2/etc" "$2/etc2" "$3" "$3"2 & pid=$!; shift 3
i=0; while [ $i -lt 300 ]; do "$@" <state 2>>said; i=$((i+1)); done; kill $pid`;
  fs.writeFileSync(path.join(dir, "config.json"), JSON.stringify({ root: { path: "rootfs" } }));
  fs.writeFileSync(path.join(dir, "state"), JSON.stringify({ id: "x", bundle: dir }));
  const r = spawnSync(
    "timeout",
    ["60", "sh", "-c", script, "sh", program, rootfs, rootfs + LIB, SLUICE, "cdi-hook", ...CUDA],
    {
      cwd: dir,
      encoding: "utf8",
    },
  );
  assert.equal(r.status, 0, r.stderr);
  assert.equal(snapshot(outside), before);
  const said = fs.readFileSync(path.join(dir, "said"), "utf8");
  assert.equal(said.includes("E_INTERNAL"), false, said.slice(0, 2000));
});

/** What `ldconfig -p` says is in a cache. */
function listed(cache: string): string[] {
  const printed = execFileSync("/sbin/ldconfig", ["-p", "-C", cache], { encoding: "utf8", env: { LC_ALL: "C" } });
  return printed.split("\n").filter((line) => line.startsWith("\t"));
}

test("glibc's own ldconfig reads what was added to its caches, and sorts names as we do", local, (t) => {
  const dir = folder(t);
  const names = [
    "liba.so.1",
    "liba.so.10",
    "liba.so.9",
    "lib10.so.1",
    "lib9.so.1",
    "libA.so.1",
    "lib_a.so.1",
    "liba-b.so.1",
  ];
  names.push(
    "liba1b.so.1",
    "liba1.so.1",
    "liba01.so.2",
    "liba.so.1.2",
    "libb.so.1.10.1",
    "libb.so.1.9.20",
    "libab.so.1",
  );
  const hwcap = { "x86_64-linux-gnu": "x86-64-v2", "aarch64-linux-gnu": "atomics" }[TRIPLET] ?? "x86-64-v2";
  const machine = TRIPLET.startsWith("aarch64") ? 0xa03 : 0x303;
  for (const at of ["etc", `lib/glibc-hwcaps/${hwcap}`]) fs.mkdirSync(path.join(dir, at), { recursive: true });
  for (const name of names) {
    compile(path.join(dir, "lib", name), "int f(void) { return 1; }", "-shared", "-nostdlib", `-Wl,-soname,${name}`);
  }
  fs.copyFileSync(path.join(dir, "lib/liba.so.1"), path.join(dir, `lib/glibc-hwcaps/${hwcap}/liba.so.1`));
  fs.writeFileSync(path.join(dir, "etc/ld.so.conf"), "/lib\n");
  const [all, merged] = [path.join(dir, "etc/new"), path.join(dir, "merged")];
  const ours = names
    .filter((name) => !/[19]0?$/.test(name))
    .map((name) => ({ path: `/opt/ours/${name}`, flags: machine }));
  for (const format of ["new", "compat"]) {
    execFileSync("/sbin/ldconfig", ["-r", dir, "-c", format, "-C", `/etc/${format}`]);
    const cache = fs.readFileSync(path.join(dir, "etc", format), "latin1");
    assert.equal(parseLdCache(cache)?.length, names.length + 1);
    fs.writeFileSync(merged, addToLdCache(cache, ours) ?? "", "latin1");
    const expected = listed(all).flatMap((line) => {
      const name = /^\t(\S+)/.exec(line)?.[1];
      const own = ours.find(({ path: at }) => at.endsWith(`/${name}`));
      const plain = line.replace(/, hwcap: "[^"]*"/, "").replace(/=> .*/, "");
      return own === undefined ? [line] : [`${plain}=> ${own.path}`, line];
    });
    assert.deepEqual(listed(merged), expected);
  }
  // In whatever order they come, all of them are sorted as ldconfig has sorted them.
  const order = (parseLdCache(fs.readFileSync(all, "latin1")) ?? []).map(({ name }) => name);
  const added = addToLdCache(
    "",
    [...names].reverse().map((name) => ({ path: `/lib/${name}`, flags: machine })),
  );
  assert.deepEqual(
    (parseLdCache(added ?? "") ?? []).map(({ name }) => name),
    [...new Set(order)],
  );
});
