-- Chooses the requests that get a line in the access log.
--
-- A line costs little, but a rush would fill the disk with lines that differ in nothing. So each worker writes a number
-- of lines a second for what was answered, and as many for what a rush is refused in bulk; beyond that, one line stands
-- for a hundred. All other errors get a line each.

local access = {}

-- Statuses with which a rush is refused: by the rules, by a limit, for overload; and what was not there yet.
local BULK = { [404] = true, [422] = true, [429] = true, [503] = true }
-- Number of requests for which one line stands in a rush.
local SPARSE = 100

local second, answered, refused = 0, 0, 0

-- Returns the network of a binary address: /24 for IPv4, also if it is mapped into IPv6, and /64 for IPv6.
function access.network(address)
    local first = #address == 16 and address:find("^" .. ("%z"):rep(10) .. "\255\255") and 13 or 1
    if #address == 4 or first == 13 then
        return string.format("%d.%d.%d.0", address:byte(first, first + 2))
    end
    if #address ~= 16 then
        return ""
    end
    local a, b, c, d, e, f, g, h = address:byte(1, 8)
    return string.format("%x:%x:%x:%x::", a * 256 + b, c * 256 + d, e * 256 + f, g * 256 + h)
end

-- Returns the number of requests for which a line about this one stands, or nil if it gets none.
local function weight(status, limit)
    if status >= 400 and not BULK[status] then
        return 1
    end
    if ngx.time() ~= second then
        second, answered, refused = ngx.time(), 0, 0
    end
    local count
    if status < 400 then
        answered = answered + 1
        count = answered
    else
        refused = refused + 1
        count = refused
    end
    if count <= limit then
        return 1
    end
    return (count - limit) % SPARSE == 0 and SPARSE or nil
end

-- Sets the variables on which nginx's log depends. `limit` is the number of lines a second.
function access.choose(limit)
    local stands_for = weight(ngx.status, limit)
    if stands_for then
        ngx.var.stands_for = stands_for
        ngx.var.network = access.network(ngx.var.binary_remote_addr)
    end
end

return access
