/** Spec files and folders: which count, and one file with every check (read.part.ts). */

import type { SluiceError } from "../sys/error.ts";
import type { Stat } from "../sys/sys.ts";
import { type Problem, problemError, shown, wholeFile } from "./problem.ts";
import type { Spec } from "./spec.ts";

/** Bytes. A spec of 128 devices with everything a driver has is 0.3 MB. */
export const SPEC_FILE_MAX = 4 * 1024 * 1024;

/** Permission bit: anybody may write. */
export const WRITABLE_BY_OTHERS = 0o002;

export interface SpecFile {
  readonly path: string;
  /** `undefined` if there are problems. */
  readonly spec: Spec | undefined;
  /** Whether `JSON.parse` of the file gives `spec`: no YAML, and nothing to put right. */
  readonly canonical: boolean;
  readonly problems: readonly Problem[];
}

/** Whether a file is a spec by its name: the specification knows `.json` and `.yaml`, and not `.yml`. */
export function isSpecFileName(name: string): boolean {
  return name.endsWith(".json") || name.endsWith(".yaml");
}

/**
 * What makes a folder unfit to hold specs: others than its owner and group may write to it, so that anybody on the
 * machine could have put the file there. The owner is not looked at: in a user namespace root's files appear to belong
 * to nobody.
 */
export function folderProblem(path: string, stat: Stat): Problem | undefined {
  if (stat.kind !== "dir") {
    return wholeFile("E_CDI_READ", `${shown(path)} is not a folder`, "correct the list of spec folders");
  }
  if ((stat.mode & WRITABLE_BY_OTHERS) === 0) return undefined;
  return wholeFile(
    "E_CDI_UNTRUSTED",
    `anybody may write to the folder ${shown(path)}`,
    `run: chmod o-w ${shown(path)}`,
  );
}

/** The error for a file that has problems. */
export function fileError(file: SpecFile): SluiceError {
  return problemError(file.path, file.problems);
}
