-- wrk script: restocks of PRODUCTS products in turn, whose ids begin with PREFIX, with the lines HEADERS. The server
-- generates the idempotency keys. Requests are built once: wrk.format would take longer than the answer.

local threads = 0

function setup(thread)
   threads = threads + 1
   thread:set("number", threads)
end

function init()
   requests, count, products = {}, 0, tonumber(os.getenv("PRODUCTS"))
   local body = '{"quantity":1}'
   for product = 1, products do
      requests[product] = "POST /v1/products/" .. os.getenv("PREFIX") .. product .. "/restock HTTP/1.1\r\n"
         .. "Host: " .. wrk.host .. ":" .. wrk.port .. "\r\n" .. (os.getenv("HEADERS") or "")
         .. "Content-Type: application/json\r\nContent-Length: " .. #body .. "\r\n\r\n" .. body
   end
end

function request()
   count = count + 1
   -- The threads are half the products apart, so that they do not request the same products at the same time.
   return requests[(count + number * math.floor(products / 2)) % products + 1]
end

-- Reports the results.
dofile(os.getenv("RESULTS"))
