/**
 * The devices of all spec folders: which there are, which one a name means, and why not. Folders come in rising
 * priority; a device of a higher one hides those of the same name below it, and two of one name in the same folder are
 * a conflict: none of them is used unless a higher folder settles it.
 */

import { OsError, quote, SluiceError } from "../sys/error.ts";
import type { Files } from "../sys/sys.ts";
import { fileError, SPEC_FILE_MAX } from "./load.ts";
import { type DeviceName, parseDeviceName } from "./name.ts";
import { shown } from "./problem.ts";
import { readSpecFile } from "./read.part.ts";
import type { Device, Spec } from "./spec.ts";
import {
  type FileProblem,
  type Folder,
  goodLines,
  lineProblems,
  parseLine,
  type Scan,
  type SpecIndex,
  type SpecLine,
  scan,
} from "./spec-index.ts";
import { explainUnknown } from "./unknown.part.ts";

/** Of the specification. The later one wins. */
export const DEFAULT_SPEC_DIRS: readonly string[] = ["/etc/cdi", "/var/run/cdi"];

export interface LoadedSpec {
  readonly path: string;
  readonly spec: Spec;
}

export interface FoundDevice extends LoadedSpec {
  /** `vendor/class=name`. */
  readonly name: string;
  readonly device: Device;
}

export interface ListedDevice {
  /** `vendor/class=name`. */
  readonly name: string;
  readonly path: string;
  /** The file of a higher folder that defines it, and counts. */
  readonly shadowedBy?: string;
  /** The other file of the same folder that defines it, so that neither counts. */
  readonly conflictsWith?: string;
}

export interface Registry {
  /**
   * @param name `vendor/class=name`
   * @throws SluiceError E_CDI_NAME, E_CDI_UNKNOWN_DEVICE, E_CDI_CONFLICT, or what is wrong with the spec's file
   */
  find(name: string): FoundDevice;
  /** The names (after `=`) of the devices of a kind that can be used, in rising priority, by file, as in the file. */
  names(kind: string): string[];
  /** The specs that have at least one device of a kind that can be used. */
  specsOfKind(kind: string): LoadedSpec[];
  /** Every device of every good file, in the order of `names`. */
  devices(): ListedDevice[];
  /** Of folders and files, and the conflicts, which are reported on both files. */
  problems(): FileProblem[];
  /**
   * A name for the state of all spec files, for what is made of them and kept: the same name means the same answers.
   * `undefined` where that is not sure.
   */
  state(): string | undefined;
}

/** @param index makes it cheap; without one, every spec file is read at once */
export function openRegistry(files: Files, dirs: readonly string[], index?: SpecIndex): Registry {
  return new FolderRegistry(files, dirs, index);
}

class FolderRegistry implements Registry {
  readonly #files: Files;
  readonly #dirs: readonly string[];
  readonly #index: SpecIndex | undefined;
  readonly #loaded = new Map<string, LoadedSpec>();
  #scan: Scan;

  constructor(files: Files, dirs: readonly string[], index: SpecIndex | undefined) {
    this.#files = files;
    this.#dirs = dirs;
    this.#index = index;
    this.#scan = scan(files, dirs, index);
  }

  find(text: string): FoundDevice {
    const name = parseDeviceName(text);
    const found = this.#lookUp(name);
    if (found !== undefined) return found;
    // The index may be wrong; the files decide.
    if (this.#scan.fromIndex) {
      this.#scan = scan(this.#files, this.#dirs, this.#index, false);
      this.#loaded.clear();
      const really = this.#lookUp(name);
      if (really !== undefined) return really;
    }
    throw this.#unknown(text, name);
  }

  names(kind: string): string[] {
    const usable = this.#usable(kind);
    return goodLines(this.#scan.folders).flatMap((line) =>
      line.kind === kind ? line.devices.filter((device) => usable.get(device) === line.path) : [],
    );
  }

  specsOfKind(kind: string): LoadedSpec[] {
    const paths = new Set(this.#usable(kind).values());
    return goodLines(this.#scan.folders).flatMap((line) => (paths.has(line.path) ? [this.#load(line)] : []));
  }

  devices(): ListedDevice[] {
    let listed: ListedDevice[] = [];
    const higher = new Map<string, string>();
    for (const folder of [...this.#scan.folders].reverse()) {
      const own = new Map<string, string[]>();
      const lines = goodLines([folder]);
      for (const line of lines) {
        for (const device of line.devices) {
          const name = `${line.kind}=${device}`;
          const paths = own.get(name);
          if (paths === undefined) own.set(name, [line.path]);
          else paths.push(line.path);
        }
      }
      const rows = lines.flatMap((line) =>
        line.devices.map((device): ListedDevice => {
          const name = `${line.kind}=${device}`;
          const row = { name, path: line.path };
          const shadowedBy = higher.get(name);
          const conflictsWith = own.get(name)?.find((path) => path !== line.path);
          return {
            ...row,
            ...(shadowedBy === undefined ? {} : { shadowedBy }),
            ...(conflictsWith === undefined ? {} : { conflictsWith }),
          };
        }),
      );
      listed = rows.concat(listed);
      for (const [name, [path]] of own) {
        if (path !== undefined && !higher.has(name)) higher.set(name, path);
      }
    }
    return listed;
  }

  problems(): FileProblem[] {
    const conflicts = this.devices().flatMap((device): FileProblem[] =>
      device.conflictsWith === undefined
        ? []
        : [
            {
              path: device.path,
              code: "E_CDI_CONFLICT",
              pointer: "",
              what: `${device.name} is also in ${shown(device.conflictsWith)}`,
              remedy: "remove one of them",
            },
          ],
    );
    return [...this.#scan.problems, ...lineProblems(this.#scan.folders), ...conflicts];
  }

  state(): string | undefined {
    return this.#scan.isUnchanged ? this.#index?.stamp : undefined;
  }

  /** Of each usable device of a kind the path of its spec. */
  #usable(kind: string): Map<string, string> {
    const usable = new Map<string, string>();
    for (const { name, path, shadowedBy, conflictsWith } of this.devices()) {
      if (shadowedBy !== undefined || conflictsWith !== undefined || !name.startsWith(`${kind}=`)) continue;
      usable.set(name.slice(kind.length + 1), path);
    }
    return usable;
  }

  /** @throws SluiceError E_CDI_CONFLICT, or what has become wrong with the file since it was scanned */
  #lookUp(name: DeviceName): FoundDevice | undefined {
    for (const folder of [...this.#scan.folders].reverse()) {
      const [line, other] = linesWith(folder, name);
      if (line === undefined) continue;
      if (other !== undefined) throw conflict(name, line, other);
      const loaded = this.#load(line);
      const device = loaded.spec.devices.find((candidate) => candidate.name === name.name);
      // Neither is so where the index is wrong, or the file was replaced since the scan.
      if (device === undefined || loaded.spec.kind !== name.kind) return undefined;
      return { ...loaded, name: `${name.kind}=${name.name}`, device };
    }
    return undefined;
  }

  #load(line: SpecLine): LoadedSpec {
    const known = this.#loaded.get(line.path);
    if (known !== undefined) return known;
    const loaded: LoadedSpec = { path: line.path, spec: this.#read(line) };
    this.#loaded.set(line.path, loaded);
    return loaded;
  }

  #read(line: SpecLine): Spec {
    const scanned = this.#scan.specs.get(line.path);
    if (scanned !== undefined) {
      this.#keep(line, scanned);
      return scanned;
    }
    const checked = line.canonical ? this.#readChecked(line) : this.#index?.readSpec(line.path, line.stamp);
    const spec = checked === undefined ? undefined : parseKept(checked);
    if (spec !== undefined) return spec;

    const stat = this.#files.stat(line.path);
    if (stat === undefined) throw gone(line.path);
    const file = readSpecFile(this.#files, line.path, stat);
    if (file.spec === undefined) throw fileError(file);
    if (stat.stamp === line.stamp) this.#keep(line, file.spec);
    return file.spec;
  }

  /** The text of a file that was checked when it had the stamp of its line, if it still has that after the reading. */
  #readChecked(line: SpecLine): string | undefined {
    try {
      const text = this.#files.readText(line.path, SPEC_FILE_MAX);
      return this.#files.stat(line.path)?.stamp === line.stamp ? text : undefined;
    } catch (e) {
      if (e instanceof OsError) return undefined; // said with its reason by the full reading
      throw e;
    }
  }

  /** Keeps the JSON of a YAML spec for the next run. Not of a racy file: its stamp does not tell its content. */
  #keep(line: SpecLine, spec: Spec): void {
    if (!line.canonical && !line.isRacy) this.#index?.writeSpec(line.path, line.stamp, JSON.stringify(spec));
  }

  #unknown(text: string, name: DeviceName): SluiceError {
    const { what, remedy } = explainUnknown({
      asked: text,
      kind: name.kind,
      name: name.name,
      dirs: this.#dirs,
      kinds: [...new Set(goodLines(this.#scan.folders).map((line) => line.kind))],
      names: this.names(name.kind),
      problems: [...this.#scan.problems, ...lineProblems(this.#scan.folders)],
    });
    return new SluiceError("E_CDI_UNKNOWN_DEVICE", what, remedy);
  }
}

/** The lines of a folder that have a device; two are enough to know of a conflict. */
function linesWith(folder: Folder, name: DeviceName): SpecLine[] {
  const found: SpecLine[] = [];
  const wanted = ` ${name.name} `;
  const { lines } = folder;
  for (let at = lines.indexOf(wanted); at >= 0 && found.length < 2; ) {
    const end = lines.indexOf("\n", at);
    const line = parseLine(folder, lines.slice(lines.lastIndexOf("\n", at) + 1, end));
    if (line?.kind === name.kind && line.devices.includes(name.name)) found.push(line);
    at = lines.indexOf(wanted, end);
  }
  return found;
}

function parseKept(json: string): Spec | undefined {
  try {
    return JSON.parse(json);
  } catch {
    return undefined;
  }
}

function gone(path: string): SluiceError {
  return new SluiceError("E_CDI_READ", `CDI spec ${shown(path)}: it was deleted just now`, "try again");
}

function conflict(name: DeviceName, one: SpecLine, other: SpecLine): SluiceError {
  return new SluiceError(
    "E_CDI_CONFLICT",
    `two CDI specs of the same folder define ${quote(`${name.kind}=${name.name}`)}: ` +
      `${shown(one.path)} and ${shown(other.path)}`,
    "remove one of them, or define the device in a folder of higher priority",
  );
}
