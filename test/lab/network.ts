/** A network for pods that must have one of their own, as those with a user namespace must. */

import type { Machine } from "./machine.ts";

/** It connects them to nothing, and says that they have an address. */
const PLUGIN = `#!/bin/sh
cat >/dev/null
case $CNI_COMMAND in
  ADD) echo '{"cniVersion": "0.4.0", "interfaces": [{"name": "'$CNI_IFNAME'", "sandbox": "'$CNI_NETNS'"}],
    "ips": [{"version": "4", "address": "192.0.2.1/24", "interface": 0}]}' ;;
  VERSION) echo '{"cniVersion": "0.4.0", "supportedVersions": ["0.3.1", "0.4.0"]}' ;;
esac
`;

/** Puts a network plugin and its settings where engines look for them when they start. */
export function bringNetwork(machine: Machine): void {
  for (const plugin of ["none", "loopback"]) {
    for (const dir of ["/opt/cni/bin", "/usr/lib/cni"]) machine.write(`${dir}/${plugin}`, PLUGIN, 0o755);
  }
  const network = { cniVersion: "0.4.0", name: "none", plugins: [{ type: "none" }] };
  machine.write("/etc/cni/net.d/none.conflist", JSON.stringify(network));
}
