SELECT mark FROM probes WHERE mark = {mark:UInt64}
