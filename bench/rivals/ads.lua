-- What the two rivals in Lua have in common: the question to the ad server,
-- and the place of the ad.

local cjson = require "cjson.safe"

local _M = {}


function _M.request_body()
    ngx.req.read_body()

    local text = ngx.req.get_body_data()
    local file = not text and ngx.req.get_body_file()

    if file then
        local f = io.open(file, "rb")
        text = f:read("*a")
        f:close()
    end

    return text
end


-- who it is, and the last 30 messages

local function question(text, conversation)
    local body = text and cjson.decode(text)

    if not body or type(body.messages) ~= "table" then
        return nil
    end

    local all, list = body.messages, {}

    for i = math.max(1, #all - 29), #all do
        local content = all[i].content

        if type(content) == "table" then
            local parts = {}

            for _, part in ipairs(content) do
                parts[#parts + 1] = part.text
            end

            content = table.concat(parts)
        end

        if all[i].role == "user" or all[i].role == "assistant" then
            list[#list + 1] = { id = tostring(i), role = all[i].role,
                                content = content }
        end
    end

    return cjson.encode({ publisherToken = "acme-dev", messages = list,
                          userId = body.user, conversationId = conversation,
                          enabledPlacementCodes = { "inlineAd" } })
end


-- the member for the finish chunk as JSON, or nil

function _M.ask(port, text, conversation)
    local body = question(text, conversation)
    local sock = ngx.socket.tcp()

    sock:settimeout(16000)

    if not body or not sock:connect("127.0.0.1", port) then
        return nil
    end

    local ok = sock:send({ "POST /preload HTTP/1.1\r\nHost: ads\r\n",
                           "Content-Type: application/json\r\n",
                           "Kontextso-Publisher-Token: acme-dev\r\n",
                           "Content-Length: ", #body, "\r\n\r\n", body })
    local line = ok and sock:receive("*l")
    local good = line and line:find(" 200 ", 1, true)
    local length

    while line and line ~= "" do
        line = sock:receive("*l")
        length = line and line:match("^[Cc]ontent%-[Ll]ength: (%d+)")
                 or length
    end

    local answer = good and length and sock:receive(tonumber(length))

    if not answer then
        sock:close()
        return nil
    end

    sock:setkeepalive(60000, 1024)

    answer = cjson.decode(answer)

    local bid = answer and answer.bids and answer.bids[1]

    return bid and cjson.encode({ ads = { {
        bidId = bid.bidId, code = bid.code, label = "Sponsored",
        frameUrl = "https://server.megabrain.co/api/frame/" .. bid.bidId
                   .. "?code=" .. bid.code } } })
end


function _M.is_finish(event)
    return event:find('"finish_reason":"', 1, true)
end


-- the finish chunk with the ad in it

function _M.with_ad(event, ad)
    local at = event:find('"finish_reason":"stop"', 1, true)
               and event:match("()}%s*$")

    return at and event:sub(1, at - 1) .. ',"kontext":' .. ad
                  .. event:sub(at) or event
end


return _M
