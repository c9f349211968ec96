/**
 * What every spec file holds, in one line each, kept in a file of ours so that a container start does not parse them
 * all: a node with dynamic resource allocation has a small spec file for each claim, hundreds of them.
 *
 *     <TAB><length of what follows of the folder><TAB><folder>
 *     <file><TAB><file> ...
 *     <stamp><TAB><stamp> ...
 *     <number of the file><TAB>j<TAB><kind><TAB> <device> <device> ...
 *     <number of the file><TAB>!<TAB><its problems as JSON>
 *
 * The files' names and stamps stand together, so that a folder without changes is told by two comparisons. The flag is
 * `j` for a file whose `JSON.parse` is a checked spec, `c` for one that is YAML or needed putting right, and `!` for a
 * bad one.
 *
 * The index is never trusted over the files: a line counts while its file has the same stamp; the spec that is used is
 * read from its file; and a device that the index does not know is looked for in all files before it is refused.
 *
 * A racy file (git's word for it) changed so shortly before it was read that a second change within the same tick of the
 * file system's clock would leave the same stamp. The index has `-` for its stamp, so that the file is read again, until
 * it has aged.
 */

import { isSettled, readCache, writeCache } from "../sys/cache.ts";
import { OsError, reasonOf } from "../sys/error.ts";
import type { Entry, Files, Stat, Sys } from "../sys/sys.ts";
import { folderProblem, isSpecFileName } from "./load.ts";
import type { Problem } from "./problem.ts";
import { linkProblem, readSpecFile } from "./read.part.ts";
import type { Spec } from "./spec.ts";

/** Some file systems keep whole seconds (FAT two of them); a time without milliseconds may be such a one. */
const COARSE_MS = 2000;
const NAME_MAX = 255;
/** What would break the form of a line. */
const SEPARATOR = /[\t\n]/;
const RACY = "-";

/**
 * Where the index is kept, and beside it the JSON of specs that are YAML, so that a container start does not load the
 * YAML parser for a file that an earlier one has read. Whatever fails in it costs time and nothing else.
 */
export class SpecIndex {
  readonly #sys: Sys;
  readonly #dir: string;
  readonly #build: string;
  #stamp: string | undefined;

  constructor(sys: Sys, dir: string, build: string) {
    this.#sys = sys;
    this.#dir = dir;
    this.#build = build;
  }

  /** Milliseconds since the epoch. */
  now(): number {
    return this.#sys.now();
  }

  /** Names what `read` has given: another write gives another name. */
  get stamp(): string | undefined {
    return this.#stamp;
  }

  /** Its sections; empty where there is no index. */
  read(): string {
    // Before it is read: one that is replaced in between must not lend its name to what was here.
    this.#stamp = this.#stampNow();
    return readCache(this.#sys, this.#dir, "index", this.#build) ?? "";
  }

  #stampNow(): string | undefined {
    try {
      return this.#sys.lstat(`${this.#dir}/index`)?.stamp;
    } catch (e) {
      if (e instanceof OsError) return undefined;
      throw e;
    }
  }

  /** @param specs paths whose JSON may stay; that of others is removed */
  write(sections: string, specs: readonly string[]): void {
    if (!writeCache(this.#sys, this.#dir, "index", this.#build, sections)) return;
    const kept = new Set(specs.map(cacheName));
    try {
      for (const { name } of this.#sys.list(this.#dir) ?? []) {
        if (name.endsWith(".json") && !kept.has(name)) this.#sys.unlink(`${this.#dir}/${name}`);
      }
    } catch (e) {
      if (!(e instanceof OsError)) throw e; // another run was faster
    }
  }

  /** The JSON that `writeSpec` kept for a file with this stamp. */
  readSpec(path: string, stamp: string): string | undefined {
    const name = cacheName(path);
    return name === undefined ? undefined : readCache(this.#sys, this.#dir, name, `${stamp} ${path}`);
  }

  writeSpec(path: string, stamp: string, json: string): void {
    const name = cacheName(path);
    if (name !== undefined) writeCache(this.#sys, this.#dir, name, `${stamp} ${path}`, json);
  }
}

/**
 * The index below a state folder. It lies in the folder `cdi`, which must be ours alone; where it is not, or cannot be
 * written, there is none, and everything works without.
 * @param build the program's build: another one may find other things wrong with the same file, so its index is not used
 */
export function openIndex(sys: Sys, stateDir: string, build: string): SpecIndex {
  return new SpecIndex(sys, `${stateDir}/cdi`, build);
}

/** The name of a file for what is kept of a spec; `undefined` where the path makes none (too long, or not Unicode). */
function cacheName(path: string): string | undefined {
  try {
    const name = `${encodeURIComponent(path)}.json`;
    return name.length > NAME_MAX - ".".length - ".new".length ? undefined : name;
  } catch {
    return undefined;
  }
}

export interface FileProblem extends Problem {
  /** The file or folder. */
  readonly path: string;
}

/** A spec folder: its files, and a line for each. */
export interface Folder {
  readonly dir: string;
  readonly names: readonly string[];
  /** `-` for a racy file. */
  readonly stamps: readonly string[];
  /** Each ended by a newline. */
  readonly lines: string;
}

/** What a good line says. */
export interface SpecLine {
  readonly path: string;
  readonly stamp: string;
  readonly isRacy: boolean;
  readonly canonical: boolean;
  readonly kind: string;
  readonly devices: readonly string[];
}

export interface Scan {
  /** In rising priority. */
  readonly folders: readonly Folder[];
  /** Specs that were read on the way, by path. */
  readonly specs: ReadonlyMap<string, Spec>;
  /** Of folders, and of files that have no line. */
  readonly problems: readonly FileProblem[];
  /** Whether any line was taken from the index. */
  readonly fromIndex: boolean;
  /** Whether every file is surely as the index has it, so that the index stands for them all. */
  readonly isUnchanged: boolean;
}

/** The sections of an index by their folders; up to the first that is not what a section must be. */
function sectionsOf(text: string): Map<string, string> {
  const sections = new Map<string, string>();
  for (let at = 0; at < text.length; ) {
    const start = text.indexOf("\n", at) + 1;
    const [nothing, length, dir] = text.slice(at, start - 1).split("\t");
    at = start + Number(length);
    if (start === 0 || nothing !== "" || dir === undefined || !(at >= start && at <= text.length)) break;
    sections.set(dir, text.slice(start, at));
  }
  return sections;
}

function isRacy(stat: Stat, now: number): boolean {
  return !isSettled(stat, stat.ctimeMs % 1000 === 0 ? now - COARSE_MS : now);
}

interface Progress {
  readonly specs: Map<string, Spec>;
  readonly problems: FileProblem[];
  readonly folders: Folder[];
  /** The sections of `folders`. */
  readonly sections: string[];
  reused: number;
  isUnchanged: boolean;
}

/** Brings a folder up to date. `old` is its section of the index. */
function scanFolder(files: Files, dir: string, old: string, now: number, progress: Progress): void {
  const names: string[] = [];
  const kinds: string[] = [];
  const entries = files.list(dir) ?? [];
  let isPlain = true;
  for (let i = 0; i < entries.length; i++) {
    const { name, kind } = entries[i] as Entry;
    if (!isSpecFileName(name) || kind === "dir") continue;
    if (kind !== "file") isPlain = false;
    names.push(name);
    kinds.push(kind);
  }
  // What a container start finds as a rule: nothing has changed. No loop here does more than it must.
  const stamps = files.stamps(dir, names);
  const head = `${names.join("\t")}\n${stamps.join("\t")}\n`;
  // Not startsWith, which the executable's engine does character by character.
  if (isPlain && old.slice(0, head.length) === head) {
    progress.reused += names.length;
    progress.folders.push({ dir, names, stamps, lines: old.slice(head.length) });
    progress.sections.push(old);
    return;
  }

  progress.isUnchanged = false;
  const known = knownFiles(old);
  const kept: string[] = [];
  const marks: string[] = [];
  const lines: string[] = [];
  for (let i = 0; i < names.length; i++) {
    const name = names[i] as string;
    const kind = kinds[i] as string;
    const path = `${dir}/${name}`;
    let line = kind === "file" ? known.get(`${name}\t${stamps[i]}`) : undefined;
    if (line !== undefined) {
      progress.reused++;
      lines.push(`${kept.length}\t${line}\n`);
      kept.push(name);
      marks.push(stamps[i] as string);
      continue;
    }
    const stat = stamps[i] === "" ? undefined : files.stat(path);
    if (kind !== "file" || stat === undefined || SEPARATOR.test(name)) {
      if (isGone(kind, stat)) continue;
      const odd = oddProblem(files, path, name, stat);
      if (odd !== undefined) progress.problems.push({ path, ...odd });
      if (odd !== undefined || stat === undefined) continue;
    }
    line = known.get(`${name}\t${stat.stamp}`);
    if (line === undefined) line = describe(files, path, stat, progress);
    else progress.reused++;
    lines.push(`${kept.length}\t${line}\n`);
    kept.push(name);
    marks.push(isRacy(stat, now) ? RACY : stat.stamp);
  }
  const folder: Folder = { dir, names: kept, stamps: marks, lines: lines.join("") };
  progress.folders.push(folder);
  progress.sections.push(`${kept.join("\t")}\n${marks.join("\t")}\n${folder.lines}`);
}

/** The lines of a section without their numbers, by `<name><TAB><stamp>`. */
function knownFiles(section: string): Map<string, string> {
  const [names = "", stamps = "", ...lines] = section.split("\n");
  const known = new Map<string, string>();
  const nameOf = names.split("\t");
  const stampOf = stamps.split("\t");
  for (const line of lines) {
    const tab = line.indexOf("\t");
    const i = Number(line.slice(0, tab));
    if (tab > 0 && nameOf[i] !== undefined) known.set(`${nameOf[i]}\t${stampOf[i]}`, line.slice(tab + 1));
  }
  return known;
}

/** Deleted since it was listed; or a folder with the name of a file, which nobody takes for a spec. */
function isGone(kind: string, stat: Stat | undefined): boolean {
  return stat === undefined ? kind !== "link" : kind !== "link" && stat.kind === "dir";
}

/** Problems for which a file gets no line, because its `stat` does not tell when they are mended. */
function oddProblem(files: Files, path: string, name: string, stat: Stat | undefined): Problem | undefined {
  const problem = (what: string, remedy: string): Problem => ({ code: "E_CDI_READ", pointer: "", what, remedy });
  if (SEPARATOR.test(name)) return problem("its name has a tab or a line break", "rename it");
  if (stat === undefined) return problem("it is a link to nothing", "remove it");
  return linkProblem(files, path);
}

/** A file's line without its number. */
function describe(files: Files, path: string, stat: Stat, progress: Progress): string {
  const file = readSpecFile(files, path, stat);
  if (file.spec === undefined) return `!\t${JSON.stringify(file.problems)}`;
  progress.specs.set(path, file.spec);
  const names = file.spec.devices.map((device) => device.name).join(" ");
  return `${file.canonical ? "j" : "c"}\t${file.spec.kind}\t ${names} `;
}

/**
 * Looks through the spec folders, not below them. A folder that does not exist is nothing; one that is not to be
 * trusted is a problem, and its files do not count.
 * @param index without it, every file is read
 * @param believe `false` to read every file all the same, and write the index anew
 */
export function scan(
  files: Files,
  dirs: readonly string[],
  index: SpecIndex | undefined,
  believe: boolean = true,
): Scan {
  // Before the first stat, for the rule about racy files: what changes after a file was read has a later time.
  const now = index?.now() ?? 0;
  const text = believe ? (index?.read() ?? "") : "";
  const known = sectionsOf(text);
  const progress: Progress = {
    specs: new Map(),
    problems: [],
    folders: [],
    sections: [],
    reused: 0,
    isUnchanged: true,
  };
  for (const dir of lastOfEach(dirs)) {
    try {
      const stat = files.stat(dir);
      if (stat === undefined) continue;
      const bad = folderProblem(dir, stat);
      if (bad === undefined) scanFolder(files, dir, known.get(dir) ?? "", now, progress);
      else progress.problems.push({ path: dir, ...bad });
    } catch (e) {
      if (!(e instanceof OsError)) throw e;
      progress.problems.push({
        path: dir,
        code: "E_CDI_READ",
        pointer: "",
        what: `the folder cannot be read: ${reasonOf(e)}`,
        remedy: "make it readable, or take it from the list of spec folders",
      });
    }
  }
  const { folders, sections, specs, problems, reused } = progress;
  let isUnchanged = false;
  if (index !== undefined && !dirs.some((dir) => SEPARATOR.test(dir))) {
    const fresh = folders.map(({ dir }, i) => `\t${sections[i]?.length}\t${dir}\n${sections[i]}`).join("");
    if (fresh !== text) index.write(fresh, pathsWithJson(folders));
    else isUnchanged = progress.isUnchanged && problems.length === 0;
  }
  return { folders, specs, problems, fromIndex: reused > 0, isUnchanged };
}

/** Each folder once, in its last place: there it has the highest priority. */
function lastOfEach(dirs: readonly string[]): string[] {
  return dirs.filter((dir, i) => dirs.lastIndexOf(dir) === i);
}

/** Of files whose JSON is kept. */
function pathsWithJson(folders: readonly Folder[]): string[] {
  return goodLines(folders).flatMap((line) => (line.canonical ? [] : [line.path]));
}

/** A good line taken apart; `undefined` for that of a bad file, or a line that is none. */
export function parseLine(folder: Folder, line: string): SpecLine | undefined {
  const [number, flag, kind, devices] = line.split("\t");
  const name = folder.names[Number(number)];
  const stamp = folder.stamps[Number(number)];
  if (name === undefined || stamp === undefined || kind === undefined || devices === undefined) return undefined;
  return {
    path: `${folder.dir}/${name}`,
    stamp,
    isRacy: stamp === RACY,
    canonical: flag === "j",
    kind,
    devices: devices.trim().split(" "),
  };
}

/** The lines of all good files, in rising priority and the order of file names. */
export function goodLines(folders: readonly Folder[]): SpecLine[] {
  return folders.flatMap((folder) => folder.lines.split("\n").flatMap((line) => parseLine(folder, line) ?? []));
}

/** The problems of bad files, as their lines have them. */
export function lineProblems(folders: readonly Folder[]): FileProblem[] {
  const found: FileProblem[] = [];
  for (const folder of folders) {
    for (const line of folder.lines.split("\n")) {
      const [number, flag, json] = line.split("\t");
      const path = `${folder.dir}/${folder.names[Number(number)]}`;
      if (flag !== "!" || json === undefined) continue;
      for (const problem of problemsOf(json)) found.push({ path, ...problem });
    }
  }
  return found;
}

function problemsOf(json: string): Problem[] {
  try {
    return JSON.parse(json);
  } catch {
    const what = "the index of spec files is damaged";
    return [{ code: "E_CDI_READ", pointer: "", what, remedy: "remove the index" }];
  }
}
