-- The instances behind the edge, and the choice of one for each request. The supervisor posts the list of instances to
-- the control listener whenever one comes or goes. A reload of nginx instead would close connections on which clients
-- are about to send.
--
-- Each worker balances its own requests: an instance with the fewest in flight gets the next one.

local balancer = require("ngx.balancer")

local peers = {}

-- Number of instances that a request is sent to at most.
local TRIES = 3
-- An instance that fails FAILURES requests within PAUSE seconds gets no requests for that long, then is tried again.
local FAILURES, PAUSE = 3, 1
-- Interval in seconds at which the counts of requests in flight are halved, so that an error in them does not last.
local HALVED = 60
-- Added to the requests in flight of instances that are a last resort.
local FAILING, TRIED = 1e6, 1e9

-- The list as text, and its version.
local shared = ngx.shared.peers

-- Instances by tier as arrays of { address, host, port }, and the version of the list that they come from.
local tiers, version = {}, nil
-- Requests in flight, and recent failures as { count, time of the first }, by address.
local in_flight, failures = {}, {}
local halved, turn = 0, 0

-- Replaces the list, which has lines such as `queries 127.0.0.1:8082`.
local function replace(list)
    shared:set("list", list)
    shared:incr("version", 1, 0)
end

-- Returns the instances of a tier, from the current list.
local function instances(tier)
    local current = shared:get("version")
    if current ~= version then
        version, tiers = current, {}
        for of, address, host, port in (shared:get("list") or ""):gmatch("(%l+) ((%S+):(%d+))") do
            tiers[of] = tiers[of] or {}
            table.insert(tiers[of], { address = address, host = host, port = tonumber(port) })
        end
    end
    return tiers[tier] or {}
end

local function note_failure(address)
    local failure, now = failures[address], ngx.now()
    if failure and now - failure.since < PAUSE then
        failure.count = failure.count + 1
        if failure.count == FAILURES then
            failure.since = now
        end
    else
        failures[address] = { count = 1, since = now }
    end
end

local function is_failing(address)
    local failure = failures[address]
    return failure and failure.count >= FAILURES and ngx.now() - failure.since < PAUSE
end

-- Returns the instance for the next attempt: the owner of the command's partition if it is known, else the least busy.
local function pick(all, tried, owner)
    local best, least
    turn = turn + 1
    for i = 1, #all do
        local instance = all[(turn + i) % #all + 1]
        local address = instance.address
        local busy = in_flight[address] or 0
        if tried[address] then
            busy = busy + TRIED
        elseif is_failing(address) then
            busy = busy + FAILING
        elseif address == owner then
            return instance
        end
        if not least or busy < least then
            best, least = instance, busy
        end
    end
    return best
end

local function halve()
    if ngx.now() - halved > HALVED then
        halved = ngx.now()
        for address, count in pairs(in_flight) do
            in_flight[address] = math.floor(count / 2)
        end
    end
end

-- Reads the list that the supervisor has stored. Called when nginx starts.
function peers.load(path)
    local file = io.open(path)
    if file then
        replace(file:read("*a"))
        file:close()
    end
end

-- Answers a request of the control listener, whose body is the new list.
function peers.answer()
    ngx.req.read_body()
    local list = ngx.req.get_body_data()
    if list then
        replace(list)
    end
    ngx.print(shared:get("list"))
end

-- Returns the addresses of a tier's instances.
function peers.addresses(tier)
    local addresses = {}
    for number, instance in ipairs(instances(tier)) do
        addresses[number] = instance.address
    end
    return addresses
end

-- Chooses the instance for this attempt of a request.
function peers.choose(tier)
    local ctx = ngx.ctx
    if ctx.last then
        if balancer.get_last_failure() == "failed" then
            note_failure(ctx.last)
        end
    else
        ctx.tried = {}
        balancer.set_more_tries(TRIES - 1)
        halve()
    end
    local instance = pick(instances(tier), ctx.tried, ctx.owner)
    if not instance then
        return ngx.exit(ngx.ERROR)
    end
    local address = instance.address
    ctx.last, ctx.tried[address] = address, true
    in_flight[address] = (in_flight[address] or 0) + 1
    local ok, problem = balancer.set_current_peer(instance.host, instance.port)
    if not ok then
        ngx.log(ngx.ERR, "cannot use ", address, ": ", problem)
        return ngx.exit(ngx.ERROR)
    end
end

-- Counts a request's attempts as ended. Called in the log phase, for shared requests as well.
function peers.release()
    for address in (ngx.var.upstream_addr or ""):gmatch("[^%s,]+") do
        local count = in_flight[address]
        if count and count > 0 then
            in_flight[address] = count - 1
        end
    end
end

return peers
