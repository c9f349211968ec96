/**
 * `make gpu-kit`: all that run.sh needs to run Sluice on a machine with an NVIDIA GPU that has nothing else: no
 * network, no container engine, no Node. A folder to copy there, below 64 MiB.
 *
 *   node --import tsx test/gpu/kit.ts [DIR]     (default: build/gpu-kit)
 */

import * as fs from "node:fs";
import * as path from "node:path";
import { fileURLToPath } from "node:url";
import { cached, placeOf } from "../lab/cache.ts";
import { must, unpack } from "../lab/debian.ts";
import { ROOT, SLUICE } from "../support/simulated-host.ts";

const HERE = path.join(ROOT, "test/gpu");
/** Where run.sh puts the kit: a program that names its own loader must name it absolutely. */
const PLACE = "/run/sluice-gpu-kit";
const LOADER = "ld-linux-x86-64.so.2";
const LIBRARIES = "usr/lib/x86_64-linux-gnu";

const PACKAGES = ["runc", "patchelf", "busybox-static", "libc6"];
const PARTS = ["gpu-kit", ["trixie", PACKAGES]] as const;

/** Whether the lab has what the kit is made of; if not, `makeKit` needs a Debian mirror. */
export function hasParts(): boolean {
  return fs.existsSync(placeOf(...PARTS));
}

/** runc, a libc for it and for the containers, and patchelf, which makes the one find the other. */
export function makeParts(): string {
  return cached(...PARTS, (dir) => unpack(dir, "trixie", PACKAGES));
}

/** Writes the kit into `dir`, which it empties first. @throws Error on a machine that is not x86-64, or without gcc */
export function makeKit(dir: string): void {
  if (process.arch !== "x64") throw new Error(`the GPU kit is for x86-64, this machine is ${process.arch}`);
  const from = makeParts();
  const tool = (name: string): string => path.join(from, "usr/bin", name);
  const library = (name: string): string => fs.realpathSync(path.join(from, LIBRARIES, name));

  fs.rmSync(dir, { recursive: true, force: true });
  const [bin, lib, rootfs] = [path.join(dir, "bin"), path.join(dir, "lib"), path.join(dir, "rootfs")];
  for (const folder of [bin, lib]) fs.mkdirSync(folder, { recursive: true });
  fs.copyFileSync(path.join(HERE, "run.sh"), path.join(dir, "run"));
  fs.copyFileSync(SLUICE, path.join(bin, "sluice"));
  fs.copyFileSync(tool("busybox"), path.join(bin, "busybox"));
  for (const name of [LOADER, "libc.so.6", "libseccomp.so.2"]) fs.copyFileSync(library(name), path.join(lib, name));

  // patchelf is of Debian's suite too, whose libc may be newer than this machine's.
  const carried = [path.join(from, LIBRARIES, LOADER), "--library-path", path.join(from, LIBRARIES)] as const;
  const runc = path.join(bin, "runc");
  fs.copyFileSync(path.join(from, "usr/sbin/runc"), runc);
  const own = ["--set-interpreter", `${PLACE}/lib/${LOADER}`, "--set-rpath", `${PLACE}/lib`];
  must(carried[0], [...carried.slice(1), tool("patchelf"), ...own, runc]);

  makeRootfs(rootfs, from);
}

/** An image with a real libc, as the driver's libraries need, a shell, and the two programs that look at the GPU. */
function makeRootfs(rootfs: string, from: string): void {
  for (const folder of ["dev", "proc", "sys", "tmp", "usr/bin", LIBRARIES, "usr/lib64"]) {
    fs.mkdirSync(path.join(rootfs, folder), { recursive: true });
  }
  for (const name of ["bin", "lib", "lib64"]) fs.symlinkSync(`usr/${name}`, path.join(rootfs, name));
  const libraries = [LOADER, "libc.so.6", "libm.so.6", "libdl.so.2", "libpthread.so.0", "librt.so.1"];
  for (const name of libraries) {
    fs.copyFileSync(path.join(from, LIBRARIES, name), path.join(rootfs, LIBRARIES, name));
  }
  fs.symlinkSync(`../lib/x86_64-linux-gnu/${LOADER}`, path.join(rootfs, "usr/lib64", LOADER));
  const bin = path.join(rootfs, "usr/bin");
  fs.copyFileSync(path.join(from, "usr/bin/busybox"), path.join(bin, "busybox"));
  for (const name of ["sh", "sleep", "true"]) fs.symlinkSync("busybox", path.join(bin, name));
  compile("cuda", bin);
  compile("probe", bin, "-static");
}

function compile(name: string, bin: string, ...options: string[]): void {
  const strict = ["-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror", ...options];
  must("gcc", [...strict, "-o", path.join(bin, name), path.join(HERE, `${name}.c`)]);
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const dir = path.resolve(process.argv[2] ?? path.join(ROOT, "build/gpu-kit"));
  makeKit(dir);
  const [size] = must("du", ["-sh", dir]).split("\t");
  process.stdout.write(`${dir} (${size}): copy it to a machine with an NVIDIA GPU and, as root, call its run\n`);
}
