// What the scripts beside this one share: a connection as xo-server makes it, and a way to report.
import { createClient } from 'xen-api'

export const [url, user, password, ...rest] = process.argv.slice(2)

export async function connect() {
  const xapi = createClient({ url, auth: { user, password }, debounce: 20, eventPollDelay: 100 })
  await xapi.connect()
  await xapi.objectsFetched
  return xapi
}

export function find(xapi, type, name) {
  return Object.values(xapi.objects.indexes.type[type]).find(
    record => record.name_label === name && !record.is_a_snapshot
  )
}

export async function end(xapi, report) {
  await xapi.disconnect()
  console.log(JSON.stringify(report))
  process.exit(0)
}
