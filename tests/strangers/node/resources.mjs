// A disk out of one VDI as a VHD and into another one, through the HTTP handlers, with tasks.
import { createHash } from 'node:crypto'
import { once } from 'node:events'
import { createReadStream } from 'node:fs'
import { writeFile } from 'node:fs/promises'
import { connect, end, find, rest } from './connect.mjs'

// A body that ends with its connection must be read without a pause: when it ends while paused,
// undici 6 dies of an assertion (nodejs/undici#5360).
async function whole(body) {
  const pieces = []
  body.on('data', piece => pieces.push(piece))
  await once(body, 'end')
  return Buffer.concat(pieces)
}

const [name, sr, file] = rest
const xapi = await connect()
const source = find(xapi, 'VDI', name)

const exported = await xapi.getResource('/export_raw_vdi', {
  query: { format: 'vhd', vdi: source.$ref },
  task: xapi.createTask('export by xen-api'),
})
const vhd = await whole(exported.body)
await writeFile(file, vhd)
const task = await exported.task

const target = await xapi.call('VDI.create', {
  SR: find(xapi, 'SR', sr).$ref,
  name_label: `${name} by xen-api`,
  other_config: {},
  read_only: false,
  sharable: false,
  type: 'user',
  virtual_size: source.virtual_size,
})
const body = createReadStream(file)
body.length = vhd.length
await xapi.putResource(body, '/import_raw_vdi', {
  query: { format: 'vhd', vdi: target },
  task: xapi.createTask('import by xen-api'),
})

const back = await xapi.getResource('/export_raw_vdi', { query: { format: 'raw', vdi: target } })
const digest = createHash('sha256').update(await whole(back.body))
await end(xapi, { task, target, sha256: digest.digest('hex'), bytes: vhd.length })
