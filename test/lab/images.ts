/** Container images, made without a registry, as archives that `docker load`, `podman load` and `ctr image import` take. */

import { createHash } from "node:crypto";
import * as fs from "node:fs";
import * as path from "node:path";
import { fileURLToPath } from "node:url";
import { cached, placeOf } from "./cache.ts";
import { must, unpack } from "./debian.ts";

const PROBE = path.join(path.dirname(fileURLToPath(import.meta.url)), "probe.c");

interface Recipe {
  /** Another version makes the image anew. */
  version: number;
  /** Fills the image's root. */
  fill(root: string): void;
  config?: { Cmd?: string[]; Env?: string[]; Labels?: Record<string, string>; User?: string };
}

const RECIPES = {
  /** A shell and its tools, static. */
  busybox: { version: 1, fill: fillBusybox, config: { Cmd: ["sh"] } },
  /** What holds a pod's namespaces: it waits, and ends at SIGTERM. */
  pause: { version: 1, fill: fillStatic, config: { Cmd: ["/probe", "wait"] } },
  /** One static program (probe.c) and no other file. */
  static: { version: 1, fill: fillStatic, config: { Cmd: ["/probe", "wait"] } },
  /** glibc, its dynamic linker, ldconfig with a cache, a shell and the core utilities, as Debian builds them. */
  debian: { version: 1, fill: fillDebian, config: { Cmd: ["sh"] } },
  /** Like Alpine: musl's libc and dynamic linker, a program that needs them (/usr/bin/probe), busybox, no ldconfig. */
  musl: { version: 1, fill: fillMusl, config: { Cmd: ["sh"] } },
  /** Works, and holds traps for whoever follows its paths, believes its files or runs its programs from outside. */
  hostile: {
    version: 1,
    fill: fillHostile,
    config: {
      Cmd: ["sh"],
      Env: [
        "PATH=/usr/local/bin:/bin",
        "NVIDIA_VISIBLE_DEVICES=all",
        "NVIDIA_DRIVER_CAPABILITIES=all",
        "LD_PRELOAD=/usr/local/lib/preload.so",
        "LD_LIBRARY_PATH=/usr/local/lib",
      ],
      Labels: { "gpu.sluice.dev": "nvidia.com/gpu=all", "sluice.dev/plan": "0".repeat(64) },
    },
  },
} satisfies Record<string, Recipe>;

export type ImageName = keyof typeof RECIPES;

export const IMAGES = Object.keys(RECIPES) as ImageName[];

/** How engines call it. The domain belongs to nobody, so no engine can find it elsewhere. */
export function reference(name: ImageName): string {
  return `lab.test/${name}:1`;
}

function placeKey(name: ImageName): [name: string, key: unknown] {
  const recipe: Recipe = RECIPES[name];
  return [`image-${name}`, [recipe.version, recipe.config ?? {}, fs.readFileSync(PROBE, "utf8")]];
}

/** Whether `image` has nothing to make. */
export function hasImage(name: ImageName): boolean {
  return fs.existsSync(placeOf(...placeKey(name)));
}

/** The image as a docker-archive; made where it is not there yet. */
export function image(name: ImageName): string {
  const recipe: Recipe = RECIPES[name];
  const dir = cached(...placeKey(name), (aside) => {
    const root = path.join(aside, "root");
    fs.mkdirSync(root, { mode: 0o755 });
    recipe.fill(root);
    pack(aside, root, name, recipe);
    fs.rmSync(root, { recursive: true });
  });
  return path.join(dir, "image.tar");
}

/** Docker's archive format: a tar of the layer, the image's configuration and a manifest that names both. */
function pack(dir: string, root: string, name: ImageName, recipe: Recipe): void {
  const reproducible = ["--sort=name", "--mtime=@0", "--numeric-owner", "--format=gnu"];
  must("tar", [...reproducible, "-C", root, "-cf", path.join(dir, "layer.tar"), "."]);
  const sha256 = (data: string | Buffer): string => createHash("sha256").update(data).digest("hex");
  const config = JSON.stringify({
    architecture: { x64: "amd64" }[process.arch as string] ?? process.arch,
    os: "linux",
    created: "1970-01-01T00:00:00Z",
    config: { Env: ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"], ...recipe.config },
    rootfs: { type: "layers", diff_ids: [`sha256:${sha256(fs.readFileSync(path.join(dir, "layer.tar")))}`] },
    history: [{ created: "1970-01-01T00:00:00Z", created_by: "test/lab/images.ts" }],
  });
  const configName = `${sha256(config)}.json`;
  const manifest = [{ Config: configName, RepoTags: [reference(name)], Layers: ["layer.tar"] }];
  fs.writeFileSync(path.join(dir, configName), config);
  fs.writeFileSync(path.join(dir, "manifest.json"), JSON.stringify(manifest));
  const members = ["manifest.json", configName, "layer.tar"];
  must("tar", [...reproducible, "-C", dir, "-cf", path.join(dir, "image.tar"), ...members]);
  for (const member of members) fs.rmSync(path.join(dir, member));
}

function fillBusybox(root: string): void {
  const folders = [
    "bin",
    "dev",
    "etc",
    "home",
    "lib",
    "proc",
    "root",
    "run",
    "sys",
    "tmp",
    "usr/bin",
    "usr/lib",
    "var",
  ];
  for (const folder of folders) fs.mkdirSync(path.join(root, folder), { recursive: true });
  fs.chmodSync(path.join(root, "tmp"), 0o1777);
  const unpacked = `${root}.package`;
  unpack(unpacked, "bookworm", ["busybox-static"], { withoutDependencies: true });
  const busybox = path.join(root, "bin/busybox");
  fs.renameSync(path.join(unpacked, "usr/bin/busybox"), busybox);
  fs.rmSync(unpacked, { recursive: true });
  for (const applet of must(busybox, ["--list"]).trim().split("\n")) {
    if (applet !== "busybox") fs.symlinkSync("busybox", path.join(root, "bin", applet));
  }
  makePasswd(root);
}

function makePasswd(root: string): void {
  fs.writeFileSync(path.join(root, "etc/passwd"), "root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000::/home:/bin/sh\n");
  fs.writeFileSync(path.join(root, "etc/group"), "root:x:0:\nuser:x:1000:\n");
}

function fillStatic(root: string): void {
  compileStatic(path.join(root, "probe"));
}

function compileStatic(program: string): void {
  must("gcc", ["-std=c11", "-D_GNU_SOURCE", "-O2", "-static", "-s", "-o", program, PROBE]);
}

/** Beside the documents that `unpack` leaves out: character sets and what only an administrator runs. */
const DEBIAN_EXCLUDES = [
  "usr/lib/*/gconv",
  "usr/share/bash-completion",
  "usr/share/i18n",
  "usr/share/zoneinfo",
  "usr/sbin/*-config",
];

function fillDebian(root: string): void {
  unpack(root, "bookworm", ["base-files", "coreutils", "dash", "libc-bin", "libc6"], { exclude: DEBIAN_EXCLUDES });
  makePasswd(root);
  compileStatic(path.join(root, "usr/bin/probe"));
}

function fillMusl(root: string): void {
  fillBusybox(root);
  fs.rmSync(path.join(root, "bin/ldconfig"), { force: true });
  const unpacked = `${root}.musl`;
  unpack(unpacked, "bookworm", ["musl", "musl-dev"], { withoutDependencies: true });
  const triplet = fs.readdirSync(path.join(unpacked, "usr/include"))[0] as string;
  const headers = path.join(unpacked, "usr/include", triplet);
  const libraries = path.join(unpacked, "usr/lib", triplet);
  // musl's libc is its dynamic linker. Programs ask for it by the name that Alpine gives it.
  const linker = `ld-musl-${triplet.split("-")[0]}.so.1`;
  const libc = `libc.musl-${triplet.split("-")[0]}.so.1`;
  fs.copyFileSync(path.join(libraries, "libc.so"), path.join(root, "lib", linker));
  fs.chmodSync(path.join(root, "lib", linker), 0o755);
  fs.symlinkSync(linker, path.join(root, "lib", libc));
  const objects = ["crt1.o", "crti.o", "crtn.o"].map((name) => path.join(libraries, name));
  must("gcc", [
    ...["-std=c11", "-D_GNU_SOURCE", "-O2", "-s", "-no-pie", "-fno-stack-protector"],
    ...["-nostdinc", "-isystem", headers, "-nostdlib", `-Wl,--dynamic-linker=/lib/${linker}`],
    ...["-o", path.join(root, "usr/bin/probe"), ...objects, PROBE, "-L", path.join(root, "lib"), `-l:${libc}`],
  ]);
  fs.rmSync(unpacked, { recursive: true });
}

function fillHostile(root: string): void {
  fillBusybox(root);
  const place = (file: string): string => path.join(root, file);
  for (const folder of ["usr/local/bin", "usr/local/lib", "stray", "etc/cdi", "opt"]) {
    fs.mkdirSync(place(folder), { recursive: true });
  }
  const out = "../".repeat(16);
  // Followed from outside, or joined to the root as a string, these lead to the host.
  fs.rmdirSync(place("usr/lib"));
  const links = {
    "usr/lib": `${out}var/lib/outside`,
    "usr/bin/nvidia-smi": `${out}etc/passwd`,
    "usr/bin/nvidia-cuda-mps-control": "/proc/1/root/usr/bin/sluice",
    "etc/ld.so.cache": `${out}etc/ld.so.cache`,
    "etc/ld.so.conf.d": "/proc/self/fd",
    "etc/cdi/nvidia.json": `${out}etc/cdi/nvidia.json`,
    "dev/nvidiactl": `${out}etc/shadow`,
    "run/sluice": `${out}run/sluice`,
    "opt/loop": "loop",
    "tmp/nvidia-mps": "/run",
  };
  for (const [link, target] of Object.entries(links)) fs.symlinkSync(target, place(link));
  const absurd = [
    "include /etc/ld.so.conf",
    "include /proc/kcore",
    `/${"x".repeat(5000)}`,
    "\u0000\u001b[2J",
    "$(reboot)",
  ];
  fs.writeFileSync(place("etc/ld.so.conf"), `${absurd.join("\n")}\n`);
  // Programs that somebody might run as root, each of which leaves a trace.
  for (const name of ["usr/local/bin/ldconfig", "usr/local/bin/runc", "bin/ldconfig", "usr/bin/nvidia-modprobe"]) {
    fs.rmSync(place(name), { force: true });
    fs.writeFileSync(place(name), "#!/bin/sh\necho $0 >>/tmp/was-run\n", { mode: 0o4755 });
    fs.chmodSync(place(name), 0o4755);
  }
  fs.writeFileSync(place("usr/local/lib/preload.so"), "not a library\n", { mode: 0o755 });
  fs.copyFileSync(place("bin/busybox"), place("usr/local/bin/setuid-busybox"));
  fs.chmodSync(place("usr/local/bin/setuid-busybox"), 0o6755);
  // Devices of the host: kernel memory, a GPU's usual numbers, a disk; and a pipe at which an open waits for ever.
  must("mknod", ["-m", "666", place("stray/mem"), "c", "1", "1"]);
  must("mknod", ["-m", "666", place("stray/nvidia0"), "c", "195", "0"]);
  must("mknod", ["-m", "666", place("stray/disk"), "b", "8", "0"]);
  must("mkfifo", [place("usr/bin/nvidia-debugdump")]);
  const names = ["new\nline", "tab\t", "-rf", "back\\slash", "per%cent", "quote\"'", " ", "n".repeat(255), "\u202eltr"];
  for (const name of names) fs.writeFileSync(path.join(place("opt"), name), "");
  fs.writeFileSync(Buffer.concat([Buffer.from(`${place("opt")}/`), Buffer.from([0xff, 0xfe])]), "");
}
