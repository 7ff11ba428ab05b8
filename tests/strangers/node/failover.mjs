// A pool whose master moves: the client is told, and comes back through the member it knows.
import { once } from 'node:events'
import { connect, end, find } from './connect.mjs'

const xapi = await connect()
const before = { master: xapi.pool.$master.name_label, uuid: xapi.pool.uuid }
console.log(JSON.stringify(before))

await once(process.stdin, 'data') // the master has moved
await xapi.disconnect()
await xapi.connect()
await xapi.barrier()
await end(xapi, {
  ...before,
  now: xapi.pool.$master.name_label,
  samePool: xapi.pool.uuid === before.uuid,
  vm: find(xapi, 'VM', 'web01').power_state,
})
