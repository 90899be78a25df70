#!/bin/sh
# The tests' guest: two ext4 disks, a writer that puts one counter first on the first and then on the second, an agent.
/bin/busybox mkdir -p /bin /sbin /usr/bin
/bin/busybox --install -s /bin
export PATH=/bin:/sbin:/usr/bin:/usr/sbin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
for module in $(cat /modules/order); do insmod "/modules/$module" || echo "NO-MODULE $module"; done
mkdir -p /a /b /run /var/run /usr/local/var/run /etc/qemu
mount -t ext4 /dev/vda /a && mount -t ext4 /dev/vdb /b || echo NO-MOUNT
port=$(ls /dev/vport* | head -1)
hook=$(grep -q hooks /proc/cmdline && echo -F/etc/qemu/fsfreeze-hook)
qemu-ga -d -m virtio-serial -p "$port" -t /run $hook && echo AGENT
mkdir -p /a/log /b/log
count=$(cat /a/count 2>/dev/null || echo 0)
echo "READY $count"
while true; do
    count=$((count + 1))
    echo $count >/a/count.new && sync /a/count.new && mv /a/count.new /a/count && sync -f /a || echo WRITE-FAILED
    echo $count >/b/count.new && mv /b/count.new /b/count && sync -f /b || echo WRITE-FAILED
    dd if=/dev/urandom "of=/a/log/$((count % 40))" bs=64k count=4 2>/dev/null || echo WRITE-FAILED
    echo "COUNT $count"
done
