#!/bin/sh
# The guest of the LVM tests: three empty disks, LVM without udev, and Python with our sources.
/bin/busybox mkdir -p /bin /sbin
/bin/busybox --install -s /bin
export PATH=/usr/sbin:/sbin:/bin:/usr/bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mount -t tmpfs tmp /tmp
mount -t tmpfs run /run
for module in $(cat /modules/order); do insmod "/modules/$module" || echo "NO-MODULE $module"; done
mkdir -p /etc/lvm /run/lock/lvm /run/lvm /mnt
cat >/etc/lvm/lvm.conf <<X
activation { udev_sync=0 udev_rules=0 monitoring=0 verify_udev_operations=1 }
devices { dir="/dev" scan=["/dev"] obtain_device_list_from_udev=0 use_devicesfile=0 }
global { thin_check_executable="" thin_repair_executable="" use_lvmpolld=0 }
backup { backup=0 archive=0 }
X
export PYTHONHOME=/python PYTHONPATH=/ourselves LVM_SUPPRESS_FD_WARNINGS=1
/python/bin/python /ourselves/story.py
echo "STORY-ENDED $?"
poweroff -f
