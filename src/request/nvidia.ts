/** NVIDIA's variables (reference nvidia-amd-cdi.md 1.4), of which most come from images. */

import { printable, quote, SluiceError } from "../sys/error.ts";
import { checkName } from "./name.ts";

/** The variables of an environment whose names begin with `NVIDIA_`, with their values. */
export type NvidiaVariables = ReadonlyMap<string, string>;

const PREFIX = "NVIDIA_";

/** Characters; see ask.ts. */
const MAX_LENGTH = 16_384;

/** Whether an entry of an environment is one of those. */
export function isNvidiaVariable(entry: string): boolean {
  // Every container's environment is searched: the first character tells most entries apart, for less than a slice.
  return entry.charCodeAt(0) === 78 && entry.slice(0, PREFIX.length) === PREFIX;
}

/** The last setting of a variable counts. */
export function readNvidiaVariables(env: readonly string[]): NvidiaVariables {
  const variables = new Map<string, string>();
  for (const entry of env) {
    if (!isNvidiaVariable(entry)) continue;
    const equals = entry.indexOf("=");
    if (equals > 0) variables.set(entry.slice(0, equals), entry.slice(equals + 1));
  }
  return variables;
}

/** @throws SluiceError E_REQUEST_ENV where it is longer than any honest one */
export function checkLength(variable: string, value: string): void {
  if (value.length > MAX_LENGTH) {
    throw badVariable(variable, `its value has ${value.length} characters`, `keep it below ${MAX_LENGTH}`);
  }
}

export function badVariable(variable: string, what: string, remedy: string): SluiceError {
  return new SluiceError("E_REQUEST_ENV", `variable ${shownName(variable)}: ${what}`, remedy);
}

/** A variable's name, which may be one that a container made up, for a message. */
export function shownName(variable: string): string {
  return printable(variable.slice(0, 100));
}

const VISIBLE = "NVIDIA_VISIBLE_DEVICES";

/** How drivers before 470 named a MIG device: `MIG-GPU-<UUID of the GPU>/<GPU instance>/<compute instance>`. */
const OLD_MIG_NAME = /^MIG-GPU-[^=]*\//;

/**
 * What `NVIDIA_VISIBLE_DEVICES` asks for: `undefined` for nothing (unset, empty, `void`), `"driver"` for the driver's
 * files without a GPU (`none`), else qualified CDI device names, each once.
 *
 * Items are qualified names, or names of the default kind: an index, a UUID, a MIG device's (`0:1`, `MIG-<UUID>`),
 * `all`. Unlike NVIDIA's toolkit, a duplicate does not lose the GPU (reference 1.4, duplicate ids), and an image that
 * sets `CUDA_VERSION` but not this variable (made before 2018) does not ask for all GPUs.
 *
 * @throws SluiceError E_REQUEST_ENV or E_CDI_NAME
 */
export function readVisibleDevices(
  variables: NvidiaVariables,
  defaultKind: string,
): readonly string[] | "driver" | undefined {
  const value = variables.get(VISIBLE)?.trim();
  if (value === undefined || value === "" || value === "void") return undefined;
  if (value === "none") return "driver";
  checkLength(VISIBLE, value);
  const names = new Set<string>();
  for (const raw of value.split(",")) {
    const item = raw.trim();
    if (item === "" || item === "none" || item === "void") {
      const what = item === "" ? "an empty item" : `${item} beside other items`;
      throw badVariable(VISIBLE, `${quote(value)} has ${what}`, "remove it");
    }
    if (OLD_MIG_NAME.test(item)) {
      throw badVariable(
        VISIBLE,
        `${quote(item)} names a MIG device as drivers before 470 did`,
        "name it by index, as 0:1, or by its own UUID, as MIG-...; sluice cdi list shows both",
      );
    }
    const name = item.includes("=") || item.includes("/") ? item : `${defaultKind}=${item}`;
    checkName(name, `variable ${VISIBLE}`);
    names.add(name);
  }
  return [...names];
}

/** What a container may ask of the driver. */
export const CAPABILITIES = ["compute", "compat32", "display", "graphics", "ngx", "utility", "video"] as const;
export type DriverCapability = (typeof CAPABILITIES)[number];

/** The capabilities that a container asks for, where those are not all. */
export interface AskedCapabilities {
  /** Each once, in the order of `CAPABILITIES`. */
  readonly names: readonly DriverCapability[];
  /** For a person: how the variable came to mean these. */
  readonly from: string;
}

const CAPABILITIES_VARIABLE = "NVIDIA_DRIVER_CAPABILITIES";

/** What NVIDIA's toolkit gives where the variable is not set. */
const DEFAULT_CAPABILITIES: AskedCapabilities = {
  names: ["compute", "utility"],
  from: `${CAPABILITIES_VARIABLE} is not set: compute,utility`,
};

/**
 * What `NVIDIA_DRIVER_CAPABILITIES` asks for: a comma list of capabilities, or `all`. Empty items do not count.
 *
 * @param isNative whether the GPUs are asked for by their CDI names: all capabilities are then meant where the variable
 * is not set or empty, as an engine's own CDI gives them; else `compute,utility`
 * @returns `undefined` for all
 * @throws SluiceError E_REQUEST_ENV
 */
export function readCapabilities(variables: NvidiaVariables, isNative: boolean): AskedCapabilities | undefined {
  const value = variables.get(CAPABILITIES_VARIABLE) ?? "";
  checkLength(CAPABILITIES_VARIABLE, value);
  const asked = new Set<string>();
  for (const raw of value.split(",")) {
    const item = raw.trim();
    if (item !== "" && item !== "all" && !(CAPABILITIES as readonly string[]).includes(item)) {
      throw badVariable(
        CAPABILITIES_VARIABLE,
        `${quote(item)} is not a capability of the driver`,
        `use all, or a comma list of ${CAPABILITIES.join(", ")}`,
      );
    }
    if (item !== "") asked.add(item);
  }
  if (asked.size === 0) return isNative ? undefined : DEFAULT_CAPABILITIES;
  const names = CAPABILITIES.filter((name) => asked.has(name));
  if (asked.has("all") || names.length === CAPABILITIES.length) return undefined;
  return { names, from: `${CAPABILITIES_VARIABLE}=${names.join(",")}` };
}
