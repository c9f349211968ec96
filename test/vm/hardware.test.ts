import assert from "node:assert/strict";
import { after, before, beforeEach, describe, test } from "node:test";
import type { Spec } from "../../src/cdi/spec.ts";
import { containers, lines, opens, ROOTFS, refused } from "./containers.ts";
import { boot, needsVm, type Vm } from "./vm.ts";

const PCI = "/sys/bus/pci/devices";
/** The GPU, its audio function, and the card with SR-IOV, where QEMU's slots put them. */
const [GPU, AUDIO, CARD] = ["0000:01:00.0", "0000:01:00.1", "0000:02:00.0"];
const TYPES = "/sys/class/mdev_bus/mtty/mdev_supported_types";
const MDEVS = "/sys/bus/mdev/devices";
const uuid = (last: number) => `83b8f4f2-509f-382f-3c1e-${last.toString(16).padStart(12, "0")}`;

/** A script's function: the name of the folder that a link of sysfs leads to, nothing where there is no link. */
const LEADS_TO = `leads_to() { if [ -e "$1" ]; then basename "$(readlink -f "$1")"; else echo; fi; }\n`;

describe("the VM's hardware", needsVm(), () => {
  let vm: Vm;
  let bundle: Awaited<ReturnType<typeof containers>>;
  before(async () => {
    vm = await boot();
    bundle = await containers(vm);
  });
  after(() => vm.close());
  /** No mediated device and no virtual function is left from the test before. */
  beforeEach(() =>
    vm.sh(`for mdev in ${MDEVS}/*; do if [ -e $mdev ]; then echo 1 >$mdev/remove; fi; done
      echo 0 >${PCI}/${CARD}/sriov_numvfs`),
  );

  const leadsTo = async (link: string): Promise<string> => (await vm.sh(`${LEADS_TO} leads_to ${link}`)).trim();

  /** Gives a container the first of two VFIO groups through a CDI spec, and lets it try both. */
  async function tries(given: string, other: string): Promise<string[]> {
    const [mine, foreign] = [`/dev/vfio/${given}`, `/stray/${other}`];
    const spec: Spec = {
      cdiVersion: "0.5.0",
      kind: "vendor.com/vgpu",
      devices: [{ name: "0", containerEdits: { deviceNodes: [{ path: mine }, { path: "/dev/vfio/vfio" }] } }],
      containerEdits: {},
    };
    await vm.write("/etc/cdi/vgpu.json", JSON.stringify(spec));
    await vm.sh(`numbers=$(stat -c '0x%t 0x%T' /dev/vfio/${other})
      rm -f ${ROOTFS}${foreign}; mknod -m 600 ${ROOTFS}${foreign} c $(printf '%d %d' $numbers)`);
    const dir = await bundle(`vfio-${given}`, {
      script: opens(mine, "/dev/vfio/vfio", foreign),
      annotations: { "gpu.sluice.dev": "vendor.com/vgpu=0" },
    });
    return lines(await vm.sh(`sluice-runtime run --bundle ${dir} vfio-${given}`));
  }
  const expected = (given: string, other: string) => [
    `/dev/vfio/${given} opens`,
    "/dev/vfio/vfio opens",
    refused(`/stray/${other}`),
  ];

  test("every PCI device is in an IOMMU group, and a GPU shares its group with its audio function only", async () => {
    const table = await vm.sh(`${LEADS_TO} cd ${PCI}
      for device in *; do echo $device $(leads_to $device/iommu_group); done`);
    const groups = new Map(lines(table).map((line) => line.split(" ") as [string, string]));
    assert.ok(
      [...groups.values()].every((group) => /^\d+$/.test(group)),
      table,
    );
    const members = await vm.sh(`ls /sys/kernel/iommu_groups/${groups.get(GPU)}/devices`);
    assert.deepEqual(lines(members), [GPU, AUDIO]);
    assert.equal(await vm.sh(`cat /sys/kernel/iommu_groups/${groups.get(GPU)}/type`), "DMA\n");
  });

  test("a PCI device says what it is as a GPU does, and a PCIe one has 4096 bytes of configuration", async () => {
    const facts = await vm.sh(`cd ${PCI}/${GPU}; cat class vendor device; stat -c %s config
      stat -c %s ../${AUDIO}/config`);
    assert.deepEqual(lines(facts), ["0x038000", "0x1234", "0x1111", "4096", "256"]);
  });

  test("the GPU is taken over by vfio-pci, and its group's node comes and goes with that", async () => {
    const group = await leadsTo(`${PCI}/${GPU}/iommu_group`);
    await vm.sh(`echo vfio-pci >${PCI}/${GPU}/driver_override; echo ${GPU} >/sys/bus/pci/drivers_probe`);
    assert.equal(await leadsTo(`${PCI}/${GPU}/driver`), "vfio-pci");
    const numbers = await vm.sh(`printf '%d:%d\\n' $(stat -c '0x%t 0x%T' /dev/vfio/${group})`);
    assert.equal(numbers, await vm.sh(`cat /sys/class/vfio/${group}/dev`));
    await vm.sh(`echo ${GPU} >${PCI}/${GPU}/driver/unbind; echo >${PCI}/${GPU}/driver_override`);
    assert.equal(await vm.sh(`ls /dev/vfio`), "vfio\n");
  });

  test("mtty offers two types of mediated devices, with 24 ports to share among them", async () => {
    const facts = await vm.sh(`cd ${TYPES}
      for type in *; do echo $type, $(cat $type/name), $(cat $type/device_api), $(cat $type/available_instances); done`);
    assert.deepEqual(lines(facts), [
      "mtty-1, Single port serial, vfio-pci, 24",
      "mtty-2, Dual port serial, vfio-pci, 12",
    ]);
  });

  test("a mediated device is created with a type, a group and a node, and removed with all of them", async () => {
    await vm.sh(`echo ${uuid(1)} >${TYPES}/mtty-2/create`);
    assert.equal(await vm.sh(`cat ${TYPES}/mtty-1/available_instances`), "22\n");
    assert.equal(await leadsTo(`${MDEVS}/${uuid(1)}/mdev_type`), "mtty-2");
    assert.equal(await vm.sh(`ls ${TYPES}/mtty-2/devices`), `${uuid(1)}\n`);
    const group = await leadsTo(`${MDEVS}/${uuid(1)}/iommu_group`);
    assert.equal(await vm.sh(`ls /sys/kernel/iommu_groups/${group}/devices`), `${uuid(1)}\n`);
    assert.equal(await vm.sh(`stat -c %F /dev/vfio/${group}`), "character special file\n");

    const again = await vm.run(`echo ${uuid(1)} >${TYPES}/mtty-1/create`);
    assert.match(again.err, /File exists/);

    await vm.sh(`echo 1 >${MDEVS}/${uuid(1)}/remove`);
    assert.equal(await vm.sh(`ls ${MDEVS} /dev/vfio`), `/dev/vfio:\nvfio\n\n${MDEVS}:\n`);
    assert.equal(await vm.sh(`cat ${TYPES}/mtty-1/available_instances`), "24\n");
  });

  test("when the mediated devices are used up, the next is refused for want of space", async () => {
    const create = Array.from({ length: 12 }, (_, i) => `echo ${uuid(i)} >${TYPES}/mtty-2/create`);
    await vm.sh(create.join("\n"));
    assert.equal(await vm.sh(`cat ${TYPES}/*/available_instances`), "0\n0\n");
    for (const type of ["mtty-1", "mtty-2"]) {
      const { code, err } = await vm.run(`echo ${uuid(99)} >${TYPES}/${type}/create`);
      assert.notEqual(code, 0);
      assert.match(err, /No space left on device/);
    }
  });

  test("a container opens the group of the mediated device that it was given, and not another one's", async () => {
    await vm.sh(`for id in ${uuid(1)} ${uuid(2)}; do echo $id >${TYPES}/mtty-1/create; done`);
    const [given, other] = [
      await leadsTo(`${MDEVS}/${uuid(1)}/iommu_group`),
      await leadsTo(`${MDEVS}/${uuid(2)}/iommu_group`),
    ];
    assert.deepEqual(await tries(given, other), expected(given, other));
  });

  test("virtual functions are made through sysfs, each with its own group, and go to vfio-pci", async () => {
    assert.equal(await vm.sh(`cat ${PCI}/${CARD}/sriov_totalvfs`), "7\n");
    await vm.sh(`echo 2 >${PCI}/${CARD}/sriov_numvfs`);
    const vfs = [await leadsTo(`${PCI}/${CARD}/virtfn0`), await leadsTo(`${PCI}/${CARD}/virtfn1`)];
    const groups: string[] = [];
    for (const vf of vfs) {
      assert.equal(await leadsTo(`${PCI}/${vf}/physfn`), CARD);
      assert.equal(await leadsTo(`${PCI}/${vf}/driver`), "igbvf");
      const group = await leadsTo(`${PCI}/${vf}/iommu_group`);
      assert.equal(await vm.sh(`ls /sys/kernel/iommu_groups/${group}/devices`), `${vf}\n`);
      await vm.sh(`echo ${vf} >${PCI}/${vf}/driver/unbind; echo vfio-pci >${PCI}/${vf}/driver_override
        echo ${vf} >/sys/bus/pci/drivers_probe`);
      assert.equal(await leadsTo(`${PCI}/${vf}/driver`), "vfio-pci");
      assert.match(await vm.sh(`ls ${PCI}/${vf}/vfio-dev`), /^vfio\d+\n$/);
      groups.push(group);
    }
    const [given, other] = groups as [string, string];
    assert.notEqual(given, other);
    assert.deepEqual(await tries(given, other), expected(given, other));

    await vm.sh(`echo 0 >${PCI}/${CARD}/sriov_numvfs`);
    assert.equal(await vm.sh("ls /dev/vfio"), "vfio\n");
  });
});
