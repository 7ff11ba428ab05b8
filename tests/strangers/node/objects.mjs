// Objects kept by events, a barrier, a task that is watched, and errors with their codes.
import { connect, end, find } from './connect.mjs'

const xapi = await connect()
const report = { types: Object.keys(xapi.objects.indexes.type) }

const web01 = find(xapi, 'VM', 'web01')
report.disks = web01.$VBDs.map(vbd => vbd.$VDI?.name_label ?? null).sort()
report.sizeIsANumber = typeof web01.$VBDs.find(vbd => vbd.type === 'Disk').$VDI.virtual_size === 'number'
report.sees = web01.$resident_on.name_label

await web01.set_name_description('changed through xen-api')
report.description = (await xapi.barrier(web01.$ref)).name_description
await web01.update_other_config('stranger', 'yes')
await web01.update_other_config('stranger', 'still')
report.otherConfig = (await xapi.barrier(web01.$ref)).other_config.stranger

const snapshotRef = await web01.$callAsync('snapshot', 'web01 by xen-api')
const snapshot = await xapi.barrier(snapshotRef)
report.snapshot = {
  name: snapshot.name_label,
  of: snapshot.$snapshot_of.name_label,
  isSnapshot: snapshot.is_a_snapshot,
}

try {
  await snapshot.$callAsync('start', false, false)
} catch (error) {
  report.refused = error.code
}
try {
  await xapi.call('VM.levitate', snapshotRef)
} catch (error) {
  report.unknown = error.code
}

const vdis = snapshot.$VBDs.filter(vbd => vbd.type === 'Disk').map(vbd => vbd.VDI)
await snapshot.$callAsync('destroy')
for (const vdi of vdis) {
  await xapi.callAsync('VDI.destroy', vdi)
}
await xapi.barrier()
report.left = [snapshotRef, ...vdis].filter(ref => xapi.getObject(ref, null) !== null)
await end(xapi, report)
