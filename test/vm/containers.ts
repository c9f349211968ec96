/** OCI bundles in the VM, and what a container's script uses to show which devices it can open. */

import type { Config, LinuxDevice } from "../../src/oci/spec.ts";
import type { Vm } from "./vm.ts";

/** What the tests change of a bundle's config.json, beside what Sluice knows. */
export interface BundleConfig extends Config {
  process: NonNullable<Config["process"]> & {
    terminal: boolean;
    args: string[];
    noNewPrivileges: boolean;
    capabilities: Record<string, string[]>;
  };
  root: { path: string; readonly: boolean };
  linux: NonNullable<Config["linux"]> & {
    devices?: LinuxDevice[];
    namespaces: { type: string; path?: string }[];
    uidMappings?: IdMapping[];
    gidMappings?: IdMapping[];
  };
}

interface IdMapping {
  containerID: number;
  hostID: number;
  size: number;
}

export interface BundleOptions {
  /** The container's command, run by busybox's shell. */
  script: string;
  annotations?: Record<string, string>;
  change?: (config: BundleConfig) => void;
}

/** The root of all containers. `stray/` in it holds nodes that an image could bring along. */
export const ROOTFS = "/srv/rootfs";

/** Makes ROOTFS, and gives the function that makes bundles: by name, with the folder as result. */
export async function containers(vm: Vm): Promise<(name: string, options: BundleOptions) => Promise<string>> {
  const template = await vm.sh(`
    mkdir -p ${ROOTFS}/bin ${ROOTFS}/stray ${ROOTFS}/tmp /srv/template
    cp /usr/bin/busybox ${ROOTFS}/bin
    chroot ${ROOTFS} /bin/busybox --install -s /bin
    cd /srv/template
    runc spec
    cat config.json
  `);
  return async (name, { script, annotations, change }) => {
    const config = JSON.parse(template) as BundleConfig;
    config.process.terminal = false;
    config.process.args = ["/bin/sh", "-c", script];
    config.process.env = ["PATH=/bin"];
    config.root = { path: ROOTFS, readonly: false };
    if (annotations !== undefined) config.annotations = annotations;
    change?.(config);
    const dir = `/srv/bundles/${name}`;
    await vm.write(`${dir}/config.json`, JSON.stringify(config));
    return dir;
  };
}

/** Opens nodes for reading and writing, and says for each whether it could, or why not. */
export function opens(...nodes: string[]): string {
  // The shell's <> makes a file where there is none.
  return `for node in ${nodes.join(" ")}; do
    if [ ! -e $node ]; then echo "$node is not there"
    elif said=$( (exec 3<>$node) 2>&1); then echo "$node opens"
    else echo "$node:\${said##*:}"; fi
  done`;
}

/** What `opens` says of a node that the device cgroup refuses. */
export const refused = (node: string) => `${node}: Operation not permitted`;

/** The lines of a text that ends with a line break. */
export function lines(text: string): string[] {
  return text === "" ? [] : text.replace(/\n$/, "").split("\n");
}
