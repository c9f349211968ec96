import type { Config } from "../oci/spec.ts";
import { quote, SluiceError } from "../sys/error.ts";
import type { PodContainer } from "./allocation.ts";

/*
 * Which pod a container belongs to, from its config.json. Engines copy annotations of the pod's author into it: on
 * containerd those that its configuration lets through, on CRI-O all. What is read here are keys that each engine
 * writes last, with the kubelet's words, on every container.
 */

/** Says "container" or "sandbox". */
const CONTAINERD_TYPE = "io.kubernetes.cri.container-type";
const CRIO_TYPE = "io.kubernetes.cri-o.ContainerType";
/** CRI-O says "cri-o"; Podman, whose pods no kubelet knows, says "libpod" beside CRI-O's type. */
const MANAGER = "io.container.manager";

/** Of each engine: the keys of namespace, pod, container and the pod's UID. */
const CONTAINERD_KEYS = [
  "io.kubernetes.cri.sandbox-namespace",
  "io.kubernetes.cri.sandbox-name",
  "io.kubernetes.cri.container-name",
  "io.kubernetes.cri.sandbox-uid",
] as const;
/** The kubelet's labels, which CRI-O writes as annotations: behind those of the pod. */
const CRIO_KEYS = [
  "io.kubernetes.pod.namespace",
  "io.kubernetes.pod.name",
  "io.kubernetes.container.name",
  "io.kubernetes.pod.uid",
] as const;

/**
 * The container of a pod that a config.json is for; `undefined` for a container of no pod, and for a pod's sandbox,
 * which has no workload.
 *
 * @throws SluiceError E_POD where the annotations contradict each other, or leave out what every engine writes
 */
export function podOf(config: Config): PodContainer | undefined {
  const annotations = config.annotations;
  if (!annotations) return undefined;
  const isContainerd = Object.hasOwn(annotations, CONTAINERD_TYPE);
  const isCrio = Object.hasOwn(annotations, CRIO_TYPE);
  if (!isContainerd && !isCrio) return undefined;
  if (isContainerd && isCrio) {
    throw unclear(
      `it has the annotations ${CONTAINERD_TYPE} and ${CRIO_TYPE}, of which each engine writes only its own`,
      "remove the annotation that is not the engine's from the pod",
    );
  }
  if (isCrio && annotations[MANAGER] === "libpod") return undefined;
  if (annotations[isContainerd ? CONTAINERD_TYPE : CRIO_TYPE] === "sandbox") return undefined;
  const keys = isContainerd ? CONTAINERD_KEYS : CRIO_KEYS;
  const [namespace, pod, container, uid] = keys.map((key) => (Object.hasOwn(annotations, key) ? annotations[key] : ""));
  if (!namespace || !pod || !container) {
    const missing = keys[[namespace, pod, container].findIndex((value) => !value)] as string;
    throw unclear(
      `it has no annotation ${quote(missing)}, which the engine writes for each container that a kubelet starts`,
      'where something else starts pods, set policy.trust = "engine"',
    );
  }
  return { namespace, pod, container, ...(uid ? { uid } : {}) };
}

/** The id of the sandbox of a container that has a pod. What looks like the other engine's is the pod's own word. */
export function sandboxOf({ annotations }: Config): string | undefined {
  if (!annotations) return undefined;
  if (Object.hasOwn(annotations, CONTAINERD_TYPE)) return annotations["io.kubernetes.cri.sandbox-id"];
  return Object.hasOwn(annotations, CRIO_TYPE) ? annotations["io.kubernetes.cri-o.SandboxID"] : undefined;
}

function unclear(what: string, remedy: string): SluiceError {
  return new SluiceError("E_POD", `it cannot be told which pod this container belongs to: ${what}`, remedy);
}

/** `namespace/pod/container`, for a person. */
export function shownPod({ namespace, pod, container }: PodContainer): string {
  return quote(`${namespace}/${pod}/${container}`, 400);
}
