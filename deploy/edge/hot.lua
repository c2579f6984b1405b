-- Short-lived cache of public answers. A popular page costs the read tier one request per 80 ms, and readers get the
-- previous answer while that request is in flight. nginx's own cache has a resolution of whole seconds.
--
-- Invariant: at most one shared request per key is sent within `RENEWED`, however slow the read tier is, and even if
-- the reader that sent it disconnects. Others send their own request only if nothing is cached, after `PATIENCE`.

local edge = require("edge")

local hot = {}

-- Ages of an answer in seconds, counted from its request: when one reader renews it, and when it expires. The latter is
-- the s-maxage of answers. If the read tier answers within 20 ms, no served answer is older than 100 ms.
local RENEWED, SERVED = 0.08, 1
-- Seconds for which a reader waits for another one's request if nothing is cached, and the interval of its polls.
local PATIENCE, LOOK = 0.02, 0.005
local MAX_KEY_BYTES, MAX_BODY_BYTES = 1024, 1024 * 1024
-- Total size of parsed answers at which a worker discards all of them.
local MAX_OWN_BYTES = 16 * 1024 * 1024

-- Shared by the workers: serialized answers, and turns. While a key has a turn, no other reader may send a shared
-- request for it. The turn is false if the answer turned out not to be cacheable.
local kept, turns = ngx.shared.hot_answers, ngx.shared.hot_turns
-- Answers parsed by this worker, and their total size.
local own, own_bytes = {}, 0

-- Returns the seconds since an answer was requested. The absolute value keeps answers from living longer when the clock
-- is set back.
local function age(answer)
    return math.abs(ngx.now() - answer.asked)
end

-- Serializes an answer: time of the request and status, headers, an empty line, body.
local function written(answer)
    local lines = { answer.asked .. " " .. answer.status }
    for i = 1, #answer.head, 2 do
        lines[#lines + 1] = answer.head[i] .. ":" .. answer.head[i + 1]
    end
    return table.concat(lines, "\n") .. "\n\n" .. answer.body
end

-- Parses an answer that `written` serialized.
local function read(text)
    local asked, status, lines, body = text:match("^(%S+) (%d+)(.-)\n\n(.*)$")
    local head = {}
    for name, value in lines:gmatch("([^:\n]+):([^\n]*)") do
        head[#head + 1], head[#head + 2] = name, value
    end
    return { asked = tonumber(asked), status = tonumber(status), head = head, body = body, text = text }
end

-- Returns the latest answer that any worker has cached, unless it has expired.
local function last(key)
    local text = kept:get(key)
    if text and not (own[key] and own[key].text == text) then
        own_bytes = own_bytes + #text
        if own_bytes > MAX_OWN_BYTES then
            own, own_bytes = {}, #text
        end
        own[key] = read(text)
    end
    local answer = own[key]
    return answer and age(answer) < SERVED and answer
end

-- Caches an answer, unless one that was requested later is already cached.
local function keep(key, answer)
    local known = last(key)
    if not known or age(answer) < age(known) then
        kept:set(key, written(answer), SERVED)
    end
end

-- Address on which the edge serves itself, and the headers that it adds there.
local host, port
local OF_CONNECTION = { connection = true, date = true, server = true }

-- Sets that address. Called once.
function hot.configure(address)
    host, port = address:match("^(.*):(%d+)$")
end

-- Sends a shared request through the edge's own address, for HTTP/2, under which nginx's Lua has no subrequests. Returns
-- what a subrequest returns; without an answer, its status is 502.
local function fetch_from_itself()
    local found = { status = 502, header = {}, body = "" }
    local socket = ngx.socket.tcp()
    socket:settimeouts(1000, 10000, 35000)
    if not socket:connect(host, tonumber(port)) then
        return found
    end
    local origin = ngx.var.http_origin
    local request = { "GET ", ngx.var.request_uri, " HTTP/1.0\r\nX-Request-Id: ", ngx.var.request_name,
        origin and "\r\nOrigin: " .. origin or "", "\r\n\r\n" }
    local line = socket:send(request) and socket:receive("*l")
    local status = line and tonumber(line:match("^HTTP/1%.%d (%d%d%d)"))
    line = status and socket:receive("*l")
    while line and line ~= "" do
        local name, value = line:match("^([^:]+): *(.-)%s*$")
        if name and not OF_CONNECTION[name:lower()] then
            found.header[name] = found.header[name] and found.header[name] .. ", " .. value or value
        end
        line = socket:receive("*l")
    end
    local body = line and socket:receive("*a")
    socket:close()
    if body then
        local length = found.header["Content-Length"] or found.header["content-length"]
        found.status, found.body, found.truncated = status, body, length and tonumber(length) ~= #body
    end
    return found
end

-- Sends a shared request to the read tier and returns the answer.
local function ask()
    local asked = ngx.now()
    local is_http2 = ngx.req.http_version() >= 2
    local found = is_http2 and fetch_from_itself() or ngx.location.capture("/edge/fetch", { share_all_vars = true })
    local header, head = {}, {}
    for name, value in pairs(found.header) do
        header[name:lower()] = type(value) == "table" and table.concat(value, ", ") or value
    end
    -- Otherwise no instance answered, or it could not parse the request.
    local is_whole = header["x-request-id"] == ngx.var.request_name and not found.truncated
    local said = header["cache-control"] or ""
    header["x-request-id"], header["content-length"] = nil, nil
    for name, value in pairs(header) do
        head[#head + 1], head[#head + 2] = name, value
    end
    return {
        asked = asked,
        status = found.truncated and 502 or found.status,
        head = head,
        body = found.body,
        is_whole = is_whole,
        is_for_all = is_whole and #found.body <= MAX_BODY_BYTES
            and said:find("public", 1, true) and not said:find("no-", 1, true),
    }
end

local function serve(answer, how)
    local head, header = answer.head, ngx.header
    ngx.status = answer.status
    for i = 1, #head, 2 do
        header[head[i]] = head[i + 1]
    end
    header["Content-Length"] = #answer.body
    header["X-Cache"] = how
    ngx.print(answer.body)
end

-- Renews the cached answer and serves it. If the read tier fails, the previous answer is served while it is valid.
local function renew(key)
    local answer = ask()
    if answer.is_for_all then
        keep(key, answer)
    elseif answer.status < 500 then
        turns:set(key, false, RENEWED)
    else
        local known = last(key)
        if known then
            return serve(known, "HIT")
        end
    end
    if not answer.is_whole then
        return ngx.exit(answer.status)
    end
    serve(answer, "MISS")
end

-- Answers a query from the cache or by a shared request, or passes it on as the reader's own.
function hot.answer()
    if ngx.var.http_if_match == "" then
        -- Before any rule evaluates the header, because nginx caches a variable's first value.
        edge.keep_empty_conditions()
    end
    local key = ngx.var.kept_as
    if key == "" or #key > MAX_KEY_BYTES then
        return ngx.exec("@queries")
    end
    local answer = own[key]
    if answer and age(answer) < RENEWED then
        return serve(answer, "HIT")
    end
    local patience = PATIENCE
    while not turns:add(key, true, RENEWED) do
        answer = last(key)
        if answer then
            return serve(answer, "HIT")
        end
        if patience <= 0 or turns:get(key) == false then
            return ngx.exec("@queries")
        end
        ngx.sleep(LOOK)
        patience = patience - LOOK
    end
    renew(key)
end

return hot
