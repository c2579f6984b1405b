-- The parts of the edge that nginx's own configuration cannot say.

local lead = require("lead")

local edge = {}

local TITLES = {
    [4] = '"type":"/problems/invalid-request","title":"The request is malformed"',
    [5] = '"type":"/problems/internal","title":"A fault on our side"',
}

-- Returns a UUID of version 7: 48 bits of milliseconds, and random bits of nginx's own request id.
local function uuid_v7()
    local time = string.format("%012x", ngx.now() * 1000)
    local random = ngx.var.request_id
    return string.format("%s-%s-7%s-%x%s-%s", time:sub(1, 8), time:sub(9), random:sub(1, 3),
        8 + tonumber(random:sub(4, 4), 16) % 4, random:sub(5, 7), random:sub(8, 19))
end

-- nginx sets no header to nothing: a condition without a value would be gone, and what it guards be done. An empty list
-- means the same, and the service refuses it.
function edge.keep_empty_conditions()
    if ngx.var.http_if_match == "" then
        ngx.req.set_header("If-Match", ",")
    end
    if ngx.var.http_if_none_match == "" then
        ngx.req.set_header("If-None-Match", ",")
    end
end

-- Prepares a command for its service: sees to it that it has a key, and returns it for the edge's own answers.
-- Keys that a client sent are passed on as they are, so that the service can refuse an empty one, or two.
function edge.prepare()
    if ngx.req.is_internal() then
        -- An error led here. The method is GET now, and what was said before still holds.
        return ngx.var.command_key
    end
    edge.keep_empty_conditions()
    if ngx.req.get_method() == "OPTIONS" then
        return ""
    end
    local sent = ngx.var.http_idempotency_key
    if sent then
        return sent
    end
    local made = uuid_v7()
    ngx.req.set_header("Idempotency-Key", made)
    return made
end

-- A service cannot tell the id of a request whose head it cannot read: its answer has another one. These two functions
-- make a problem of it that names the request, as every other error does.
function edge.complete_head()
    lead.learn()
    local status = ngx.status
    if status ~= 400 and status ~= 414 and status ~= 431 then
        return
    end
    local named = ngx.var.upstream_http_x_request_id
    if not named or named == ngx.var.request_name then
        return
    end
    if ngx.var.allowed_origin ~= "" then
        ngx.header.access_control_allow_origin = ngx.var.allowed_origin
        ngx.header.access_control_expose_headers = ngx.var.exposed_headers
    end
    ngx.header.content_type = "application/problem+json"
    ngx.header.content_length = nil
    ngx.ctx.problem = string.format('{%s,"status":%d,"request_id":"%s"}\n', TITLES[math.floor(status / 100)] or TITLES[4],
        status, ngx.var.request_name)
end

function edge.complete_body()
    if ngx.status < 400 then
        return
    end
    local problem = ngx.ctx.problem
    if problem then
        ngx.arg[1] = ngx.arg[2] and problem or nil
    end
end

return edge
