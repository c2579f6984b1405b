-- Answers that everybody gets, kept for a moment. What many watch costs the read tier one request in 80 ms, and who asks
-- while that is under way is given the answer before it. nginx's own cache counts whole seconds.
--
-- Invariant: within `RENEWED` one request a key is sent for everybody, however slow the read tier is, and whatever
-- becomes of the reader whose turn it was. Others send their own only where nothing is kept, after `PATIENCE`.

local edge = require("edge")

local hot = {}

-- Seconds from when an answer was asked for: until one reader asks anew, and until the others are not given it any more,
-- which is as long as s-maxage lets a cache serve it. Where the read tier answers within 20 ms, none is older than 100.
local RENEWED, SERVED = 0.08, 1
-- Seconds for which a reader waits for another one's answer where nothing is kept, and from one look for it to the next.
local PATIENCE, LOOK = 0.02, 0.005
local MAX_KEY_BYTES, MAX_BODY_BYTES = 1024, 1024 * 1024
-- The most that a worker reads before it forgets all that it has read.
local MAX_OWN_BYTES = 16 * 1024 * 1024

-- Shared by the workers: answers as text, and turns. While a key has a turn, no other reader may ask for everybody; it is
-- false once the answer is found to be for nobody else.
local kept, turns = ngx.shared.hot_answers, ngx.shared.hot_turns
-- The answers as this worker has read them.
local own, own_bytes = {}, 0

-- Returns the seconds since an answer was asked for. A clock that is set back makes none young.
local function age(answer)
    return math.abs(ngx.now() - answer.asked)
end

-- Returns an answer as text: when it was asked for and its status, its head, an empty line, its body.
local function written(answer)
    local lines = { answer.asked .. " " .. answer.status }
    for i = 1, #answer.head, 2 do
        lines[#lines + 1] = answer.head[i] .. ":" .. answer.head[i + 1]
    end
    return table.concat(lines, "\n") .. "\n\n" .. answer.body
end

local function read(text)
    local asked, status, lines, body = text:match("^(%S+) (%d+)(.-)\n\n(.*)$")
    local head = {}
    for name, value in lines:gmatch("([^:\n]+):([^\n]*)") do
        head[#head + 1], head[#head + 2] = name, value
    end
    return { asked = tonumber(asked), status = tonumber(status), head = head, body = body, text = text }
end

-- Returns the last answer that any worker has kept, if it may still be served.
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

-- Keeps an answer, unless one that was asked for later has come before it.
local function keep(key, answer)
    local known = last(key)
    if not known or age(answer) < age(known) then
        kept:set(key, written(answer), SERVED)
    end
end

-- Returns what the read tier answers everybody.
local function ask()
    local asked = ngx.now()
    local found = ngx.location.capture("/edge/fetch", { share_all_vars = true })
    local header, head = {}, {}
    for name, value in pairs(found.header) do
        header[name:lower()] = type(value) == "table" and table.concat(value, ", ") or value
    end
    -- Else no instance has answered, or it could not read what it was asked.
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

-- Asks for everybody. A failure is told only where nothing is kept.
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

-- Answers a query from what is kept, or as everybody's; or passes it on as it is.
function hot.answer()
    if ngx.var.http_if_match == "" then
        -- Before any rule has looked at it: a variable keeps the value that it had first.
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
