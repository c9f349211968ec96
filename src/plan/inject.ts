import { applyEdits } from "../oci/apply.ts";
import { type Bundle, writeConfig } from "../oci/bundle.ts";
import { patchJson } from "../oci/lossless.ts";
import { missingEdits } from "../oci/missing.part.ts";
import { withoutPresent } from "../oci/present.ts";
import type { Config } from "../oci/spec.ts";
import type { PodContainer } from "../policy/allocation.ts";
import type { Settings } from "../policy/config.ts";
import { grantRequest, trustFor } from "../policy/grant.ts";
import { podOf } from "../policy/pod.ts";
import { type ExtraRequest, isEmpty, readRequest } from "../request/request.ts";
import { quote, SluiceError } from "../sys/error.ts";
import { namesOf } from "./device-names.ts";
import { planGranted } from "./granted.ts";
import type { Machine } from "./machine.ts";
import type { Plan } from "./plan.ts";
import { concernsGpus, planForPod } from "./pod.ts";
import { type Receipt, Receipts } from "./receipt.ts";
import { openMachineRegistry } from "./registry.ts";

/** The annotation by which a later door knows that an earlier one has acted (DESIGN.md section 1). */
export const STAMP = "sluice.dev/plan";

/**
 * The plan for a container, from its config.json; `undefined` where it asks for nothing. Changes nothing, and leaves no
 * line in the audit log.
 */
export function planFor(machine: Machine, config: Config, extra?: ExtraRequest): Plan | undefined {
  const pod = podWithoutTrust(machine, config, extra);
  return pod === undefined
    ? planByEngine(machine, config, extra)
    : planForPod(machine, { door: "", id: "", pod }, config, { audited: false });
}

/**
 * As `planFor`, on the word of whoever can start containers.
 *
 * @param known the container's pod, where config.json need not be asked
 */
export function planByEngine(
  machine: Machine,
  config: Config,
  extra?: ExtraRequest,
  known?: PodContainer,
): Plan | undefined {
  const { settings } = machine;
  const request = readRequest(config, settings.cdi.defaultKind, extra);
  if (isEmpty(request)) return undefined;
  const names = (name: string) => namesOf(openMachineRegistry(machine), name);
  const pod = known ?? (matters(settings) ? podOf(config) : undefined);
  return planGranted(machine, request, grantRequest(request, settings, names, pod));
}

/** Whether it makes a difference which pod a container belongs to. */
function matters({ policy }: Settings): boolean {
  return (
    policy.trust !== "engine" || [...policy.allow, ...policy.deny].some(({ namespace }) => namespace !== undefined)
  );
}

/**
 * The pod of a container that may only have what was allocated to it. What a person adds on the command line is asked for
 * by whoever rules the machine.
 *
 * @throws SluiceError E_POD, unless the container has nothing to do with GPUs: who asks for nothing is left alone
 */
function podWithoutTrust(machine: Machine, config: Config, extra: ExtraRequest | undefined): PodContainer | undefined {
  if ((extra?.devices.length ?? 0) > 0 || Object.keys(extra?.annotations ?? {}).length > 0) return undefined;
  if (machine.settings.policy.trust === "engine") return undefined;
  try {
    const pod = podOf(config);
    return trustFor(machine.settings, pod) === "engine" ? undefined : pod;
  } catch (thrown) {
    if (!(thrown instanceof SluiceError) || concernsGpus(machine, config)) throw thrown;
    return undefined;
  }
}

/** config.json as it is with the plan: its edits applied, those already there not twice, and the stamp. */
export function applyPlan(config: Config, plan: Pick<Plan, "digest" | "edits">): Config {
  const edits = plan.edits.map((planned) => planned.edits);
  return stamped(applyEdits(config, withoutPresent(config, edits)), plan.digest);
}

function stamped<T extends { annotations?: Config["annotations"] }>(config: T, digest: string): T {
  return { ...config, annotations: { ...config.annotations, [STAMP]: digest } };
}

/** The container that a bundle is for, as the door that acts knows it. */
export interface Container {
  readonly id: string;
  readonly door: string;
  readonly runtimeRoot: string;
}

/**
 * Gives a bundle's container what it asks for: plan, receipt, then config.json, in this order, so that a kill between
 * the two leaves a receipt that nothing refers to, never a stamp that nothing vouches for.
 *
 * @returns the plan that was applied; `undefined` where there was nothing to do (nothing asked, or a door before us
 * did it)
 * @throws SluiceError E_STAMP where the container carries the stamp of a plan whose edits are no longer all there
 */
export function inject(machine: Machine, bundle: Bundle, container: Container, extra?: ExtraRequest): Plan | undefined {
  const { config } = bundle;
  const receipts = new Receipts(machine.sys, machine.stateDir);
  const done = receiptOf(bundle, container, receipts);
  const pod = podWithoutTrust(machine, config, extra);
  const given = done?.edits.map(({ edits }) => edits);
  const plan =
    pod !== undefined
      ? planForPod(machine, { ...container, pod }, config, { audited: true, ...(given === undefined ? {} : { given }) })
      : done === undefined
        ? planByEngine(machine, config, extra)
        : undefined;
  if (plan === undefined || done !== undefined) return undefined;
  const ready = plan.ready?.applyTo(config);
  const after = ready === undefined ? applyPlan(config, plan) : stamped(ready, plan.digest);
  const text = patchJson(bundle.text, config, after, machine.sys);
  receipts.write(container.id, container.door, bundle.path, container.runtimeRoot, plan, hasOwnPids(config));
  writeConfig(machine.sys, bundle, text);
  return plan;
}

function hasOwnPids({ linux }: Config): boolean {
  return (linux?.namespaces ?? []).some(({ type, path }) => type === "pid" && !path);
}

/** The receipt of the door before us that gave this container its devices; they are still there. */
function receiptOf(bundle: Bundle, container: Container, receipts: Receipts): Receipt | undefined {
  const annotations = bundle.config.annotations;
  if (!annotations || !Object.hasOwn(annotations, STAMP)) return undefined;
  const receipt = receipts.read(container.id);
  if (receipt === undefined || receipt.digest !== annotations[STAMP]) return undefined;
  const missing = missingEdits(
    bundle.config,
    receipt.edits.map((planned) => planned.edits),
  );
  if (missing.length > 0) {
    throw new SluiceError(
      "E_STAMP",
      `${bundle.path}: container ${quote(container.id)} was given plan ${receipt.digest} by the ${receipt.door} door, ` +
        `but ${missing.length} of its edits are gone, the first: ${missing[0]?.what}`,
      "find what rewrites config.json after Sluice, or create the container anew",
    );
  }
  return receipt;
}
