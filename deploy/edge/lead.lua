-- Routes a command to the instance that owns its partition.
--
-- Owners are learned from answers: an instance that has forwarded a command reports that in a header. Each worker
-- learns them independently. Wrong routing costs only time, because any instance forwards a command to its owner.

local peers = require("peers")

local lead = {}

local ffi = require("ffi")

ffi.cdef("uint64_t XXH3_64bits(const void *input, size_t length);")
-- Without the library, commands are distributed over all instances.
local has_xxhash, xxhash = pcall(ffi.load, "libxxhash.so.0")

-- Prefix of an aggregate's name, by its type in paths. Commands on other types are not routed.
local TYPES = { products = "product/", orders = "order/", sales = "sale/" }

local partitions = 0ULL
-- Address of the owner by partition, where known.
local owners = {}

-- Sets the number of partitions. Called once.
function lead.configure(how_many)
    partitions = 0ULL + how_many
end

local function number_of(address, addresses)
    for number, known in ipairs(addresses) do
        if known == address then
            return number
        end
    end
end

-- Returns the partition of the aggregate that a path names, or nil.
local function partition_of(path)
    local types, id = path:match("^/v1/(%l+)/([^/?%%]+)/")
    local prefix = TYPES[types]
    if not prefix then
        return nil
    end
    local name = prefix .. id
    return tonumber(xxhash.XXH3_64bits(name, #name) % partitions)
end

-- Returns the upstream for a command, in which the owner comes first if it is known.
function lead.upstream()
    local addresses = peers.addresses("commands")
    if not has_xxhash or #addresses < 2 then
        return "commands"
    end
    local partition = partition_of(ngx.var.request_uri)
    ngx.ctx.partition = partition
    local owner = partition and owners[partition]
    ngx.ctx.owner = owner and number_of(owner, addresses) and owner
    return "commands"
end

-- Learns the owner of the command's partition from the answer.
function lead.learn()
    local partition = ngx.ctx.partition
    if not partition then
        return
    end
    -- The last address is the instance that answered; earlier ones failed.
    local answered = (ngx.var.upstream_addr or ""):match("[^%s,]+$")
    local addresses = peers.addresses("commands")
    local number = number_of(answered, addresses)
    if not number then
        return
    end
    if ngx.var.upstream_http_stampede_owner == "elsewhere" then
        local owner = owners[partition]
        if owner == answered or not number_of(owner, addresses) then
            owners[partition] = addresses[number % #addresses + 1]
        end
    elseif ngx.status == 200 then
        owners[partition] = answered
    end
end

return lead
