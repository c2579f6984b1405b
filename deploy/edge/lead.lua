-- Leads a command to the instance that owns its partition.
--
-- Which one that is, answers tell: an instance that has passed a command on says so. Each worker learns it for itself.
-- Only time depends on it: any instance brings a command to its owner.

local lead = {}

local ffi = require("ffi")

ffi.cdef("uint64_t XXH3_64bits(const void *input, size_t length);")
-- Without the library every command goes to any instance.
local has_xxhash, xxhash = pcall(ffi.load, "libxxhash.so.0")

-- By the name in paths: what an aggregate's own name begins with. Commands on others are not led.
local TYPES = { products = "product/", orders = "order/", sales = "sale/" }

local partitions = 0ULL
-- By address, and how many there are.
local numbers, count = {}, 0
-- By partition: the number of its owner, as far as it is known.
local owners = {}

-- To be called once. `addresses` are those of the upstreams commands_1, commands_2 and so on.
function lead.configure(how_many, addresses)
    partitions = 0ULL + how_many
    count = #addresses
    for number, address in ipairs(addresses) do
        numbers[address] = number
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

-- Returns the upstream for a command.
function lead.upstream()
    if not has_xxhash or count < 2 then
        return "commands"
    end
    local partition = partition_of(ngx.var.request_uri)
    ngx.ctx.partition = partition
    local owner = partition and owners[partition]
    return owner and "commands_" .. owner or "commands"
end

-- Notes who has answered.
function lead.learn()
    local partition = ngx.ctx.partition
    if not partition then
        return
    end
    -- The last one of those that were tried.
    local number = numbers[(ngx.var.upstream_addr or ""):match("[^%s,]+$")]
    if not number then
        return
    end
    if ngx.var.upstream_http_stampede_owner == "elsewhere" then
        if not owners[partition] or owners[partition] == number then
            owners[partition] = number % count + 1
        end
    elseif ngx.status == 200 then
        owners[partition] = number
    end
end

return lead
