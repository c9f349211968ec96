import { openRegistry, type Registry } from "../cdi/registry.ts";
import { openIndex } from "../cdi/spec-index.ts";
import { readDriverVersion } from "../host/driver-version.ts";
import { Look } from "../host/look.ts";
import { applyEdits, hasUserNamespace } from "../oci/apply.ts";
import { type Bundle, writeConfig } from "../oci/bundle.ts";
import { patchJson } from "../oci/lossless.ts";
import { missingEdits } from "../oci/missing.part.ts";
import { withoutPresent } from "../oci/present.ts";
import type { Config } from "../oci/spec.ts";
import { grantRequest } from "../policy/grant.ts";
import { type ExtraRequest, isEmpty, readRequest } from "../request/request.ts";
import { checkRequirements } from "../request/requirements.ts";
import { quote, SluiceError } from "../sys/error.ts";
import { BUILD } from "../sys/version.ts";
import { planFromFreshSpecs } from "./fresh.ts";
import { KeptPlans } from "./kept-plans.ts";
import type { Machine } from "./machine.ts";
import { makePlan, type Plan } from "./plan.ts";
import { Receipts } from "./receipt.ts";

/** The annotation by which a later door knows that an earlier one has acted (DESIGN.md section 1). */
export const STAMP = "sluice.dev/plan";

export function openMachineRegistry(machine: Machine): Registry {
  const index = machine.cached ? openIndex(machine.sys, machine.stateDir, BUILD) : undefined;
  return openRegistry(machine.host, machine.specDirs, index);
}

/** The plan for a container, from its config.json; `undefined` where it asks for nothing. Changes nothing. */
export function planFor(machine: Machine, config: Config, extra?: ExtraRequest): Plan | undefined {
  const request = readRequest(config, machine.settings.cdi.defaultKind, extra);
  if (isEmpty(request)) return undefined;
  const grant = grantRequest(request, machine.settings);
  if (request.requirements !== undefined) {
    checkRequirements(request.requirements, readDriverVersion(new Look(machine.host)));
  }
  const kept = machine.cached ? new KeptPlans(machine.sys, machine.stateDir) : undefined;
  return planFromFreshSpecs(machine, grant, () =>
    makePlan(grant, openMachineRegistry(machine), machine.host, machine.sys.sha256, kept),
  );
}

/** config.json as it is with the plan: its edits applied, those already there not twice, and the stamp. */
export function applyPlan(config: Config, plan: Pick<Plan, "digest" | "edits" | "rendered">): Config {
  // In a user namespace, mounts get an option more.
  const ready = hasUserNamespace(config) ? undefined : plan.rendered;
  const edits = ready?.edits ?? plan.edits.map((planned) => planned.edits);
  const applied = applyEdits(config, withoutPresent(config, edits), ready?.mounts);
  return { ...applied, annotations: { ...applied.annotations, [STAMP]: plan.digest } };
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
  const receipts = new Receipts(machine.sys, machine.stateDir);
  if (isDone(bundle, container, receipts)) return undefined;
  const plan = planFor(machine, bundle.config, extra);
  if (plan === undefined) return undefined;
  const text = patchJson(bundle.text, bundle.config, applyPlan(bundle.config, plan), machine.sys.jsonEnd);
  receipts.write(container.id, container.door, bundle.path, container.runtimeRoot, plan);
  writeConfig(machine.sys, bundle, text);
  return plan;
}

/** Whether a door before us gave this container its devices, and they are still there. */
function isDone(bundle: Bundle, container: Container, receipts: Receipts): boolean {
  const annotations = bundle.config.annotations;
  if (!annotations || !Object.hasOwn(annotations, STAMP)) return false;
  const receipt = receipts.read(container.id);
  if (receipt === undefined || receipt.digest !== annotations[STAMP]) return false;
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
  return true;
}
