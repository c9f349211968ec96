/** Putting a spec right that is not any more, at a container's start. A part: a machine does not change often. */

import type { Spec } from "../cdi/spec.ts";
import { makeSpecs } from "../host/cdi-spec.ts";
import { differences, readMade, summary } from "../host/difference.ts";
import { makeMachineSpecs } from "../host/generate.ts";
import { changedFacts } from "../host/origin.ts";
import { lockSpecs, publishOne } from "../host/publish.ts";
import { staleSpecs } from "../host/stale.ts";
import type { Grant } from "../policy/grant.ts";
import { OsError, printable, SluiceError } from "../sys/error.ts";
import type { Files, Sys } from "../sys/sys.ts";
import type { Machine } from "./machine.ts";
import type { Plan } from "./plan.ts";

const REMEDY = "run: sluice cdi generate";

/** What became of a stale spec. */
interface Renewed {
  /** Whether the spec on disk is right now. */
  readonly isWritten: boolean;
  /** What has changed since it was made. */
  readonly differences: readonly string[];
}

/**
 * The plan where specs that it was made from are stale: after these were written anew, or the very plan where what it
 * takes from them is the same as before.
 *
 * @param stale paths
 * @throws SluiceError E_CDI_STALE, or what `make` throws
 */
export function planAnew(machine: Machine, grant: Grant, make: () => Plan, stale: readonly string[], plan: Plan): Plan {
  const renewed = stale.map((path) => renew(machine, grant, path));
  if (!renewed.some(({ isWritten }) => isWritten)) return plan;
  try {
    return make();
  } catch (thrown) {
    throw explained(thrown, renewed);
  }
}

/**
 * The plan where it could not be made: the device that is asked for may have come, or gone, since our specs were made.
 *
 * @param failure of `make`
 * @throws SluiceError E_CDI_STALE, or what `make` throws
 */
export function planAfterFailure(machine: Machine, grant: Grant, make: () => Plan, failure: SluiceError): Plan {
  const names = machine.specDirs.flatMap((dir) => filesIn(machine.host, dir));
  const renewed = staleSpecs(machine.host, names).map((path) => renew(machine, grant, path));
  if (!renewed.some(({ isWritten }) => isWritten)) {
    throw renewed.length === 0 ? withDeleted(grant, names, failure) : explained(failure, renewed);
  }
  try {
    return make();
  } catch (thrown) {
    throw explained(thrown, renewed);
  }
}

/** Paths of what is in a folder. */
function filesIn(files: Files, dir: string): string[] {
  try {
    return (files.list(dir) ?? []).map(({ name }) => `${dir}/${name}`);
  } catch (thrown) {
    if (thrown instanceof OsError) return []; // said by the registry
    throw thrown;
  }
}

/** A failure with what has changed on the machine, which as a rule is its cause. */
function explained(failure: unknown, renewed: readonly Renewed[]): unknown {
  const lines = renewed.flatMap((one) => one.differences);
  if (!(failure instanceof SluiceError) || lines.length === 0) return failure;
  const what = `${failure.what} (since its spec was made: ${summary(lines)})`;
  return new SluiceError(failure.code, what, failure.remedy, failure);
}

/** A failure with the spec of the asked kind that somebody has deleted: its origin was left. */
function withDeleted(grant: Grant, names: readonly string[], failure: SluiceError): SluiceError {
  const kinds = new Set([...grant.devices.map(({ name }) => kindOf(name)), ...grant.driver.map(({ kind }) => kind)]);
  const deleted = [...kinds]
    .map((kind) => `/sluice-${kind.replace("/", "-")}`)
    .flatMap((name) => names.filter((path) => path.endsWith(`${name}.origin`)))
    .map((path) => path.replace(/origin$/, "json"))
    .filter((path) => !names.includes(path));
  if (deleted.length === 0) return failure;
  const what = `${failure.what} (the spec ${deleted.map(printable).join(", ")} was deleted)`;
  return new SluiceError(failure.code, what, REMEDY, failure);
}

function kindOf(device: string): string {
  return device.slice(0, device.indexOf("="));
}

/**
 * Puts one spec right, under the lock of those who write specs, so that of many starts one reads the machine. Where it
 * cannot be written (by a user without the right to, or for another tree) it may still do for what is asked.
 *
 * @throws SluiceError E_CDI_STALE
 */
function renew({ sys, host, cached }: Machine, grant: Grant, path: string): Renewed {
  const dir = path.slice(0, path.lastIndexOf("/"));
  const release = cached ? lockIfAllowed(sys, dir) : undefined;
  try {
    const was = readMade(host, path);
    // Another start has put it right while we waited.
    if (was === undefined || changedFacts(host, was.origin.facts).length === 0)
      return { isWritten: true, differences: [] };
    const { options } = was.origin;
    const made = host === sys ? makeMachineSpecs(sys, options) : makeSpecs(host, options);
    const now = made.specs.find(({ spec }) => spec.kind === was.spec.kind);
    const lines = differences(host, was, now?.spec);
    if (now !== undefined && release !== undefined) {
      const isWritten = ifAllowed(() => publishOne(sys, dir, path, now, made.params, false)) !== undefined;
      if (isWritten) return { isWritten, differences: lines };
    }
    if (now !== undefined && isSame(grant, was.spec, now.spec)) return { isWritten: false, differences: lines };
    const fault = made.faults.find(({ kind }) => kind === was.spec.kind);
    throw new SluiceError(
      "E_CDI_STALE",
      `the spec ${printable(path)} is no longer right: ${fault === undefined ? summary(lines) : printable(fault.what)}`,
      fault?.remedy ?? REMEDY,
    );
  } finally {
    release?.();
  }
}

function lockIfAllowed(sys: Sys, dir: string): (() => void) | undefined {
  return ifAllowed(() => lockSpecs(sys, dir));
}

/** What writing gives; `undefined` where specs cannot be written. */
function ifAllowed<T>(write: () => T): T | undefined {
  try {
    return write();
  } catch (thrown) {
    if (thrown instanceof SluiceError && thrown.code === "E_CDI_WRITE") return undefined;
    throw thrown;
  }
}

/** Whether two specs of a kind give a container the same. */
function isSame(grant: Grant, was: Spec, now: Spec): boolean {
  const editsOf = (spec: Spec): string => {
    const asked = spec.devices.filter(({ name }) => grant.devices.some((one) => one.name === `${spec.kind}=${name}`));
    return JSON.stringify([spec.containerEdits, asked]);
  };
  return editsOf(was) === editsOf(now);
}
