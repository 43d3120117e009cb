#!BUSYBOX sh
# The first process of the machine: mounts, modules, then every line of /tests as a program. What stands between the lines that begin with
# "netlb-guest:" goes to whoever started the machine.
# busybox has a word for nearly everything; real programs come first.
BUSYBOX --install -s /bin
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root NETLB_REQUIRE=all
ln -sf BUSYBOX /sbin/modprobe
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mount -t bpf bpf /sys/fs/bpf
mount -t cgroup2 cgroup /sys/fs/cgroup
ip link set lo up
# Only the worst of the kernel's own messages on the console.
echo 2 > /proc/sys/kernel/printk
echo "netlb-guest: up $(uname -r)"
# What the kernel does not ask for by itself.
modprobe br_netfilter || echo "no br_netfilter"
while IFS='|' read -r tier folder program filters; do
    echo "netlb-guest: begin $tier"
    cd "$folder"
    IFS='|'
    CARGO_MANIFEST_DIR="$folder" "$program" $filters < /dev/null 2>&1
    echo "netlb-guest: end $tier $?"
done < /tests
echo "netlb-guest: down"
poweroff -f
